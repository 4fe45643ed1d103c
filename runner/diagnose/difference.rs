//! What is different about a job that failed, beside one that went well.

use std::collections::{BTreeMap, BTreeSet};

use drydock_spec::{Change, JobSpec};
use serde_json::{Value, json};

/// The options of a job, as one document.
#[must_use]
pub fn options(spec: &JobSpec) -> Value {
    // Jobs of one kind are compared, and its name before every option would say it again.
    json!(spec).as_object_mut().and_then(|kinds| kinds.values_mut().next().map(Value::take)).unwrap_or_default()
}

/// What differs between two documents, by the names of their values. Lists are one value each: they are compared as a
/// whole, as what stands at a place in a list says little.
#[must_use]
pub fn between(before: &Value, now: &Value) -> Vec<Change> {
    let (before, now) = (values(before), values(now));
    let names: BTreeSet<_> = before.keys().chain(now.keys()).collect();
    names
        .into_iter()
        .filter(|name| before.get(*name) != now.get(*name))
        .map(|name| Change {
            name: name.clone(),
            before: before.get(name).cloned().unwrap_or_default(),
            now: now.get(name).cloned().unwrap_or_default(),
        })
        .collect()
}

/// Every value that is no object, by its name. What is null is not there.
fn values(document: &Value) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    let mut open = vec![(String::new(), document)];
    while let Some((name, value)) = open.pop() {
        match value {
            Value::Object(fields) => {
                let inside = if name.is_empty() { String::new() } else { format!("{name}.") };
                open.extend(fields.iter().map(|(field, value)| (format!("{inside}{field}"), value)));
            }
            Value::Null => {}
            _ => {
                found.insert(name, value.clone());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_what_differs_is_told_by_its_name() {
        let before = json!({"job": {"lora_r": 8, "lr": 1e-4, "stop": ["a"]}, "limits": {"memory": 1}});
        let now = json!({"job": {"lora_r": 8, "lr": 1e-2, "stop": ["a", "b"], "seed": 1, "none": null}});
        let change = |name: &str, before: Value, now: Value| Change { name: name.into(), before, now };
        assert_eq!(
            between(&before, &now),
            [
                change("job.lr", json!(1e-4), json!(1e-2)),
                change("job.seed", Value::Null, json!(1)),
                change("job.stop", json!(["a"]), json!(["a", "b"])),
                change("limits.memory", json!(1), Value::Null),
            ]
        );
    }

    proptest! {
        #[test]
        fn nothing_differs_from_itself_and_what_differs_does_so_both_ways(a in 0..5u8, b in 0..5u8, c in any::<bool>()) {
            let one = json!({"x": {"a": a}, "c": c});
            let other = json!({"x": {"a": b}, "c": true});
            prop_assert!(between(&one, &one).is_empty());
            let names = |changes: Vec<Change>| changes.into_iter().map(|change| change.name).collect::<Vec<_>>();
            prop_assert_eq!(names(between(&one, &other)), names(between(&other, &one)));
        }
    }
}
