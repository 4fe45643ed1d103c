//! Chat templates: Jinja as Transformers' `apply_chat_template` runs it.

use std::time::{SystemTime, UNIX_EPOCH};

use drydock_spec::FailureKind::BadModel;
use drydock_spec::dataset::{Message, Role};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind, context};

use crate::ending::{OrFail, Result, failed};
use crate::foreign::{self, Ration};

/// For models without a chat template of their own: roles in words, and each answer ended.
pub const FALLBACK: &str = "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content }}\
    {% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}\
    {% if add_generation_prompt %}Assistant: {% endif %}";

/// Instructions that one rendering may take: a template comes with a model, and may be anything.
const FUEL: u64 = 2_000_000;
const RECURSION: usize = 100;
/// Far above what any template has.
const MAX_SOURCE: usize = 1 << 20;
/// Text that one rendering may write, in bytes, and for each byte that is rendered: a template tells the row, and some
/// words around each turn.
const OUTPUT: (usize, usize) = (4 << 20, 4);
/// Memory that one rendering may take, in bytes, and for each byte that is rendered. Instructions alone are no measure:
/// one may join two texts of any length, and twenty such make a million of one byte.
const MEMORY: (usize, usize) = (32 << 20, 16);

/// What one rendering may take for rows of so many bytes.
fn ration(bytes: usize) -> Ration {
    let bytes = bytes.saturating_mul(MEMORY.1).saturating_add(MEMORY.0);
    let hint = "mend the model's chat template, or give the model one of its family that is well";
    Ration { who: "the model's chat template", bytes, hint }
}

#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    globals: Vec<(&'static str, Option<String>)>,
}

impl ChatTemplate {
    /// `tokens` are the special tokens that the template may name.
    pub fn new<'a>(source: &str, tokens: impl IntoIterator<Item = (&'static str, &'a Option<String>)>) -> Result<Self> {
        if source.len() > MAX_SOURCE {
            let (bytes, most) = (source.len(), MAX_SOURCE);
            return failed(BadModel, format!("the model's chat template has {bytes} bytes; at most {most} are read"));
        }
        let globals = tokens.into_iter().map(|(name, token)| (name, token.clone())).collect();
        // What is constant in a template is computed here already.
        let environment = foreign::rationed(ration(source.len()), || environment(source));
        let environment = environment.or_fail(BadModel, "the model's chat template")?;
        Ok(Self { environment: environment.or_fail(BadModel, "the model's chat template is no valid Jinja")?, globals })
    }

    /// The chat as text; with a generation prompt it ends where the assistant would speak.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, String> {
        let tokens = self.globals.iter().filter_map(|(name, token)| Some((*name, token.as_deref()?)));
        let tokens = Value::from_pairs(tokens);
        let context = context! {
            messages => messages.iter().map(turn).collect::<Value>(),
            add_generation_prompt,
            tools => Value::from(()),
            documents => Value::from(()),
            ..tokens
        };
        let row: usize = messages.iter().map(|message| message.content.len()).sum();
        // What it takes apart at its end is its own as well: values lie in each other as deep as it likes.
        let rendered = foreign::rationed(ration(row), || {
            let mut output = Bounded { text: Vec::new(), room: OUTPUT.0.saturating_add(row.saturating_mul(OUTPUT.1)) };
            let template = self.environment.get_template("chat")?;
            template.render_captured_to(context, &mut output).map(|_| output.text)
        });
        let rendered = rendered.map_err(|panic| format!("the chat template and the row: {panic}"))?;
        let text = rendered.map_err(|error| format!("the chat template refuses the row: {}", reason(&error)))?;
        String::from_utf8(text).map_err(|error| format!("the chat template writes no UTF-8: {error}"))
    }
}

/// A template as Transformers would run it.
fn environment(source: &str) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(RECURSION);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", |format: &str| strftime(format, seconds_now()));
    environment.add_filter("tojson", tojson);
    environment.add_template_owned("chat", without_marks(source))?;
    Ok(environment)
}

/// `{% generation %}` and its end mark what Transformers is to learn from, and write nothing. Here that is found without
/// them, and the engine does not know them: they become a condition that always holds.
fn without_marks(source: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(source.len()), source);
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        out.push_str(before);
        let end = tag.find("%}").unwrap_or(tag.len());
        let (inside, after) = tag.split_at(end);
        match inside.trim_matches(['-', '+']).trim() {
            "generation" => out.push_str(&inside.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&inside.replacen("endgeneration", "endif", 1)),
            _ => out.push_str(inside),
        }
        rest = after;
    }
    out + rest
}

/// Takes what a template writes, until it is too much.
struct Bounded {
    text: Vec<u8>,
    /// Bytes that may still come.
    room: usize,
}

impl std::io::Write for Bounded {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.room = self.room.checked_sub(text.len()).ok_or_else(|| {
            let most = (self.text.len() + self.room) >> 20;
            std::io::Error::other(format!("it writes more than {most} MiB"))
        })?;
        self.text.extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn turn(message: &Message) -> Value {
    let role = match message.role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
    };
    context! { role, content => message.content.as_str() }
}

/// What a template says when it raises; otherwise what the engine says.
fn reason(error: &Error) -> String {
    if error.kind() == ErrorKind::OutOfFuel {
        return format!("it takes more than {FUEL} instructions");
    }
    error.detail().map_or_else(|| error.to_string(), str::to_owned)
}

fn raise_exception(message: String) -> Result<String, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`, which Transformers puts in the place of Jinja's
/// own filter.
fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Transformers' filter takes these too; the text does not change by them here.
    let _: (Option<bool>, Option<bool>) = (options.get("ensure_ascii")?, options.get("sort_keys")?);
    options.assert_all_used()?;
    let invalid = |error: &dyn std::fmt::Display| Error::new(ErrorKind::BadSerialization, error.to_string());
    let mut out = Vec::new();
    match indent {
        Some(width) => {
            let indent = " ".repeat(width.min(16));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            serde::Serialize::serialize(value, &mut serde_json::Serializer::with_formatter(&mut out, formatter))
        }
        None => serde::Serialize::serialize(value, &mut serde_json::Serializer::with_formatter(&mut out, Python)),
    }
    .map_err(|error| invalid(&error))?;
    String::from_utf8(out).map_err(|error| invalid(&error))
}

/// JSON with Python's spaces: `{"a": 1, "b": [2, 3]}`.
struct Python;

impl serde_json::ser::Formatter for Python {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

fn seconds_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(0)
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// A point in time in UTC, as far as templates ask for it; a container has neither locale nor time zone.
fn strftime(format: &str, seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (month_name, day_name) = (MONTHS[month - 1], DAYS[days.rem_euclid(7) as usize]);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out.push_str(&year.to_string()),
            Some('m') => out.push_str(&format!("{month:02}")),
            Some('d') => out.push_str(&format!("{day:02}")),
            Some('B') => out.push_str(month_name),
            Some('b') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(day_name),
            Some('a') => out.push_str(&day_name[..3]),
            Some('H') => out.push_str(&format!("{:02}", second / 3600)),
            Some('M') => out.push_str(&format!("{:02}", second / 60 % 60)),
            Some('S') => out.push_str(&format!("{:02}", second % 60)),
            Some(other) => out.push(other),
            None => {}
        }
    }
    out
}

/// Year, month and day of a day counted from 1970-01-01, by the Gregorian calendar: years are counted from March, so
/// that the leap day comes last, in cycles of 400 years.
fn civil(days: i64) -> (i64, usize, i64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month as usize, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, String> {
        let turns = [Message { role: Role::User, content: "  <b> \"q\" é".into() }];
        ChatTemplate::new(source, [("bos_token", &Some("<s>".to_owned()))]).unwrap().render(&turns, true)
    }

    #[test]
    fn templates_find_what_transformers_gives_them() {
        assert_eq!(render("{{ bos_token }}{{ messages[0]['role'] }}").unwrap(), "<s>user");
        assert_eq!(render("{{ messages[0].content.strip().upper() }}").unwrap(), "<B> \"Q\" É");
        assert_eq!(render("{% if tools is none and add_generation_prompt %}yes{% endif %}").unwrap(), "yes");
        assert_eq!(render("{{ eos_token }}|{{ strftime_now('%Y') | length }}").unwrap(), "|4");
    }

    #[test]
    fn marks_of_what_is_learnt_write_nothing() {
        let marked = "{% for m in messages %}{%- generation -%} {{ m.role }} {%- endgeneration %} {% endfor %}{%";
        assert_eq!(
            without_marks("{%generation%}a{% endgeneration +%}{{ generation }}"),
            "{%if true%}a{% endif +%}{{ generation }}"
        );
        assert_eq!(render(marked.trim_end_matches("{%")).unwrap(), "user ");
        assert!(ChatTemplate::new(marked, []).is_err(), "a tag without an end is nobody's");
    }

    #[test]
    fn blocks_leave_no_lines_behind() {
        assert_eq!(
            render("{% for m in messages %}\n  {% if true %}\nx\n  {% endif %}\n{% endfor %}\n").unwrap(),
            "x\n"
        );
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        let want = r#"[{"role": "user", "content": "  <b> \"q\" é"}]"#;
        assert_eq!(render("{{ messages | tojson }}").unwrap(), want);
        assert_eq!(render("{{ [1, 2] | tojson(indent=2) }}").unwrap(), "[\n  1,\n  2\n]");
    }

    #[test]
    fn a_template_may_refuse_and_may_not_run_for_ever() {
        let refusal = render("{{ raise_exception('Roles must alternate') }}").unwrap_err();
        assert_eq!(refusal, "the chat template refuses the row: Roles must alternate");
        assert!(render("{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}").is_err());
    }

    #[test]
    fn a_template_may_not_eat_memory() {
        for hungry in [
            "{{ 'x' * 1000000000 }}",
            "{% for a in range(1000000000) %}{{ a }}{% endfor %}",
            "{% set long = 'x' * 1000000 %}{% for a in range(99999) %}{{ long }}{% endfor %}",
            "{% macro again(n) %}{{ again(n + 1) }}{% endmacro %}{{ again(0) }}",
        ] {
            let refusal = render(hungry).unwrap_err();
            assert!(refusal.starts_with("the chat template refuses the row: "), "{refusal}");
        }
    }

    #[test]
    fn a_template_longer_than_any_is_refused() {
        let Err(crate::ending::Ending::Failed(failure)) = ChatTemplate::new(&"x".repeat(MAX_SOURCE + 1), []) else {
            panic!()
        };
        assert_eq!(failure.message, "the model's chat template has 1048577 bytes; at most 1048576 are read");
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(strftime("%d %b %Y", 0), "01 Jan 1970");
        assert_eq!(strftime("%A %Y-%m-%d %H:%M:%S", 1_709_210_096), "Thursday 2024-02-29 12:34:56");
        assert_eq!(strftime("%B %d", 951_868_799), "February 29");
    }

    #[test]
    fn the_fallback_ends_every_answer() {
        let turns =
            [Message { role: Role::User, content: "q".into() }, Message { role: Role::Assistant, content: "a".into() }];
        let template = ChatTemplate::new(FALLBACK, [("eos_token", &Some("</s>".to_owned()))]).unwrap();
        assert_eq!(template.render(&turns, false).unwrap(), "User: q\nAssistant: a</s>\n");
        assert_eq!(template.render(&turns[..1], true).unwrap(), "User: q\nAssistant: ");
    }
}
