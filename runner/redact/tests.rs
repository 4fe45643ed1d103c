use proptest::prelude::*;

use super::*;
use crate::diagnose::template::Template;

fn remedy(text: &str) -> bool {
    is_impersonal(&text.parse().unwrap())
}

#[test]
fn a_remedy_that_names_somebody_s_things_stays() {
    for impersonal in [
        "try again",
        "outside: get_access",
        "learning_rate * 0.1",
        "dtype = \"f32\", limits.memory_mib = fit",
        "per_device_train_batch_size = 2, save_steps = default",
    ] {
        assert!(remedy(impersonal), "{impersonal}");
    }
    for personal in [
        "model = \"acme-chat\"",
        "dataset = \"patients\", learning_rate * 0.1",
        "dtype = \"hf_abcdefghijkl\"",
        "bobs_option = 1",
        "target_modules = [\"acme_proj\"]",
        "learning_rate = {\"a\": 1}",
    ] {
        assert!(!remedy(personal), "{personal}");
    }
}

#[test]
fn what_a_message_says_stays_and_what_it_says_it_about_goes() {
    let redactor = Redactor::new(["patients".to_owned(), "acme/chat-7b".into()]);
    for (text, left) in [
        ("row <number> of <path>: no field <quoted>", "row <number> of <path>: no field <quoted>"),
        ("torch.OutOfMemoryError: CUDA out of memory", "OutOfMemoryError: CUDA out of memory"),
        ("cannot read patients from gpu01.acme.com", "cannot read <name> from <name>"),
        ("the acme chat-7b is bad", "the <name> <name> is bad"),
        ("set gradient_checkpointing; 40 GiB are enough", "set gradient_checkpointing; 40 GiB are enough"),
        ("Ask Bob Miller (desk 4) or bob@acme.com", "Ask <name> <name> (desk 4) or <name>"),
        ("Bob knows; Raise it to 40 GB, says ACME", "<name> knows; Raise it to 40 GB, says <name>"),
        ("password: hunter, then sk-abcdefghij", "<secret> then <secret>"),
        ("os error 28, q4_0", "os error 28, q4_0"),
        ("磁盘 <bob> x_y", "<name> <name> <name>"),
    ] {
        assert_eq!(redactor.text(text), left);
    }
    assert_eq!(redactor.frame("train.py:forward").as_deref(), Some("train.py:forward"));
    assert_eq!(redactor.frame("patients.py:load"), None);
    assert_eq!(redactor.frame("/srv/x.py:load"), None);
}

#[test]
fn a_device_is_named_by_its_product_alone() {
    for known in
        ["cpu", "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "cuda:0 NVIDIA H200", "NVIDIA GeForce RTX A4090 Ti"]
    {
        assert_eq!(device_class(known), known);
    }
    for other in ["bobs-box", "cpu of bob", "NVIDIA H100 at acme", "hf_abcdef", ""] {
        assert_eq!(device_class(other), "other");
    }
}

/// What must not leave, each such that it could be found in what does.
fn plant() -> impl Strategy<Value = String> {
    prop_oneof![
        "hf_[A-Za-z]{20,34}",
        "sk-[a-z]{18,24}",
        "gh[pous]_[A-Za-z0-9]{24}",
        "AKIA[A-Z]{16}",
        "eyJ[A-Za-z]{12}\\.[a-z]{12}\\.[a-z]{12}",
        "[a-z]{5,9}@[a-z]{5,9}\\.com",
        "(10|192)\\.[0-9]{1,3}\\.[0-9]{1,3}\\.[0-9]{1,3}",
        "[a-f]{4}:[a-f]{4}::[a-f]{4}",
        "[a-z]{5,9}\\.[a-z]{5,9}\\.(internal|com)",
        "/[a-z]{5,9}/[a-z]{5,9}",
        "https://[a-z]{5,9}/[a-z]{5,9}",
        "01[0-9A-HJKMNP-TV-Z]{24}",
        "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
        "[A-Za-z]{10}[A-Z][a-z]{3}[0-9]{3}",
    ]
}

proptest! {
    #[test]
    fn nothing_that_was_planted_is_left(
        plants in prop::collection::vec(plant(), 1..6),
        name in "[a-z]{7,12}",
        password in "[a-z]{9,12}",
        key in "(password|token|secret|api_key|API-KEY|Authorization)[=:] ?",
        glue in "[ ,;(]",
    ) {
        let redactor = Redactor::new([name.clone()]);
        let text = format!("cannot read{glue}{}{glue}of {name}, {key}{password} Bearer {password} now", plants.join(" by "));
        for left in [redactor.text(&text), redactor.text(&Template::of(&text).text)] {
            for plant in plants.iter().chain([&name, &password]) {
                prop_assert!(!left.to_lowercase().contains(&plant.to_lowercase()), "{plant} in {left}");
            }
        }
        for option in ["model", "method"] {
            let personal = remedy(&format!("{option} = {}", Value::from(plants[0].clone())));
            prop_assert!(!personal, "{option}");
        }
        prop_assert_eq!(device_class(&plants[0]), "other");
    }

    #[test]
    fn any_text_is_cut_to_one_line_of_bounded_length(text in any::<String>()) {
        let left = Redactor::default().text(&text);
        prop_assert!(left.chars().count() <= MOST_CHARS && !left.contains('\n'));
    }
}
