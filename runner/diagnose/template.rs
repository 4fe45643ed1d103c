//! What a message says, apart from what it says it about.
//!
//! Two messages tell of the same thing when they differ only in numbers, times, names of files, ids and quoted words.
//! These become slots: the rest is the template, and what stood in the slots is kept beside it as data. The idea is that
//! of log parsers such as Drain (He et al., 2017), but by the form of each word rather than learnt from a heap of
//! messages: a message has to have its template the first time it is seen.

use std::sync::LazyLock;

use regex::{Captures, Regex};
use serde::{Deserialize, Serialize};

/// A message taken apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Template {
    /// The words, with slots such as `<number>`; lower case, white space in one piece.
    pub text: String,
    /// What stood in the slots, in their order.
    pub slots: Vec<String>,
}

/// Forms of words that are slots, the first that fits winning. A number within a word, as in `q4_0`, is part of it.
static SLOT: LazyLock<Regex> = LazyLock::new(|| {
    let expression = r#"(?x)
        (?P<errno>   os \s \{ \s code: \s \d+ , [^}]* \} | [^:\s"`“„«] [^:"`“„«]* \( os \s error \s \d+ \) | \[ errno \s -?\d+ \] [^:]* )
      | (?P<xid>     xid \s \( [^)]* \) : \s \d+ )
      | (?P<hex>     \b 0x [0-9a-f]+ \b | \b (?: pci: )? [0-9a-f]{4,8} : [0-9a-f]{2} : [0-9a-f]{2} (?: \. \d )? \b )
      | (?P<quoted>  ` [^`]{1,300} ` | " [^"]{1,300} " | \B ' [^']{1,300} ' \B | [“„«] [^”“»]{1,300} [”“»] )
      | (?P<url>     \b [a-z][a-z0-9+.-]* :// [^\s'"`)>\]]+ )
      | (?P<time>    \b \d{4}-\d\d-\d\d (?: [t\ ] \d\d:\d\d (?: :\d\d (?: [.,]\d+ )? )? (?: z | [+-]\d\d:?\d\d )? )?
                   | \b \d{1,2}:\d\d:\d\d (?: [.,]\d+ )? )
      | (?P<path>    (?: ~ | \.{1,2} )? (?: / [\w.@%+=,~-]+ )* / [\w.@%+=,~-]* [\w@%+=~-] /?
                   | \b [a-z]:\\ [^\s'"`:]+
                   | \b [\w-]+ (?: \. [\w-]+ )* \. (?: bin | cc? | cpp | csv | cuh? | db | gguf | gz | h | jsonl? | lock | log
                       | model | parquet | pth? | py | rs | safetensors | so | tar | tmp | toml | txt | ya?ml | zip ) \b )
      | (?P<name>    \b [a-z_]\w* (?: \. [a-z_]\w* )* (?: (?: \. \d+ (?: \. [a-z_]\w* )+ )+ | \. (?: weight | bias ) ) \b )
      | (?P<uuid>    \b [0-9a-f]{8} (?: -[0-9a-f]{4} ){3} -[0-9a-f]{12} \b )
      | (?P<number>  (?: \B [+-] )? \b v? \d+ (?: [.,_'\u{a0}\u{202f}] \d+ )* (?: e [+-]? \d+ )? (?: x\d+ )*
                     (?: \b \s? % | (?: \s? (?: [kmgtp]i? b | b | bytes? | ns | us | µs | ms | s | secs? | seconds? | m | mins?
                       | minutes? | h | hours? | days? | [kmgtp] ) | st | nd | rd | th )? \b ) )
      | (?P<id>      \b 0 [0-9a-hjkmnp-tv-z]{25} \b
                   | \b [0-9a-f]{12,} \b )
    "#;
    Regex::new(expression).expect("the expression is a constant")
});

/// Several of the same kind, one after the other: as many as a shape has sides, a batch rows or a model layers, which is
/// no difference.
static ROW: LazyLock<Regex> = LazyLock::new(|| {
    let numbers = r"(?P<numbers><number>(?:(?:, ?| |; ?)<number>)+)";
    let rows = r"(?P<rows><path>, line <number>(?:, <path>, line <number>)+)";
    let lists = ["quoted", "path", "name"].map(|form| format!("(?P<{form}s><{form}>(?:, <{form}>)+)")).join("|");
    Regex::new(&format!("{rows}|{numbers}|{lists}")).expect("the expression is a constant")
});

/// The number of an error of the system, as Rust and as Python write it.
static ERRNO: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?:os error|\[errno|os \{ code:) (-?\d+)[)\],]").expect("the expression is a constant")
});

/// Before the number of a system's error.
const SYSTEM_ERROR: &str = "os error ";
/// Bytes before which no sentence is taken to end: `e.g.` ends none.
const SHORTEST_GIST: usize = 24;

/// What the C library calls the errors that failures are mostly made of: in English, German, French and Japanese.
const ERRORS: [(u32, &str); 7] = [
    (1, "operation not permitted|die operation ist nicht erlaubt|opération non permise|許可されていない操作です"),
    (
        2,
        "no such file or directory|datei oder verzeichnis nicht gefunden|aucun fichier ou dossier de ce type|そのようなファイルやディレクトリはありません",
    ),
    (
        12,
        "cannot allocate memory|nicht genügend hauptspeicher verfügbar|ne peut allouer de la mémoire|メモリを確保できません",
    ),
    (13, "permission denied|keine berechtigung|permission non accordée|許可がありません"),
    (
        28,
        "no space left on device|auf dem gerät ist kein speicherplatz mehr verfügbar|aucun espace disponible sur le périphérique|デバイスに空き領域がありません",
    ),
    (
        30,
        "read-only file system|das dateisystem ist nur lesbar|système de fichiers accessible en lecture seulement|読み込み専用ファイルシステムです",
    ),
    (
        122,
        "disk quota exceeded|der zugewiesene plattenplatz \\(quota\\) ist überschritten|débordement du quota d'espace disque|ディスク使用量制限を超過しました",
    ),
];

/// The words alone, as the C library's programs say them: behind a colon, at the end or before the next one.
static WORDED: LazyLock<Regex> = LazyLock::new(|| {
    let words = ERRORS.map(|(_, words)| format!("({words})")).join("|");
    Regex::new(&format!(r"(^|: )(?:{words})(?P<end>$|[:;])")).expect("the expression is a constant")
});

/// Exceptions over what a value is.
static OF_CONTENT: LazyLock<Regex> = LazyLock::new(|| {
    let expression = r"^(?:\w+\.)*(?:assertion|attribute|index|json\w*|key|lookup|type|unicode\w*|value)error: ";
    Regex::new(expression).expect("the expression is a constant")
});

impl Template {
    /// Takes a message apart.
    #[must_use]
    pub fn of(message: &str) -> Self {
        // Lines are wrapped at other places on other terminals.
        let message = message.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
        let message = WORDED.replace_all(&message, numbered);
        let mut slots = Vec::new();
        let text = SLOT.replace_all(&message, |found: &Captures<'_>| slot(found, &mut slots));
        Self { text: ROW.replace_all(&text, first).into_owned(), slots }
    }

    /// The number of the system's error that it speaks of, if it does. What it quotes is in a slot, and what it says of
    /// a value's content is nobody's error of a system.
    #[must_use]
    pub fn system_error(&self) -> Option<u32> {
        let (_, behind) = self.text.rsplit_once(SYSTEM_ERROR).filter(|_| !OF_CONTENT.is_match(&self.text))?;
        behind.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    }

    /// What it begins with, up to the end of its first sentence: what comes behind is advice and circumstances, which
    /// are others on other days.
    #[must_use]
    pub fn gist(&self) -> &str {
        let end = self.text.match_indices(". ").map(|(at, _)| at).find(|at| *at >= SHORTEST_GIST);
        self.text[..end.unwrap_or(self.text.len())].trim_end_matches('.')
    }
}

/// The number in place of the words, as Rust writes it.
fn numbered(found: &Captures<'_>) -> String {
    // The first group is what stands before; one for each error follows.
    let number = ERRORS.iter().zip(2..).find_map(|((number, _), group)| found.get(group).map(|_| number));
    let number = number.expect("one of the groups has matched");
    format!("{}error (os error {number}){}", &found[1], &found["end"])
}

/// What stands for all of a row.
fn first(found: &Captures<'_>) -> &'static str {
    let forms =
        [("rows", "<path>, line <number>"), ("numbers", "<number>"), ("quoteds", "<quoted>"), ("paths", "<path>")];
    forms.into_iter().find(|(form, _)| found.name(form).is_some()).map_or("<name>", |(_, text)| text)
}

/// What takes the place of what was found.
fn slot(found: &Captures<'_>, slots: &mut Vec<String>) -> String {
    let whole = &found[0];
    if found.name("errno").is_some() {
        // The system's words for it are in the language of the host; its number is not.
        let number = ERRNO.captures_iter(whole).last().map_or_else(String::new, |number| number[1].to_owned());
        return format!("{SYSTEM_ERROR}{number}");
    }
    slots.push(whole.to_owned());
    if found.name("xid").is_some() {
        // Which GPU it is says nothing of what was the matter; the number is what NVIDIA's catalogue knows it by.
        return format!("xid {}", whole.rsplit(' ').next().unwrap_or_default());
    }
    let forms = ["quoted", "url", "time", "path", "name", "number"];
    let form = forms.into_iter().find(|form| found.name(form).is_some());
    format!("<{}>", form.unwrap_or("id"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The template that all of these have.
    fn same(messages: &[&str]) -> String {
        let templates: Vec<_> = messages.iter().map(|message| Template::of(message).text).collect();
        assert!(templates.windows(2).all(|pair| pair[0] == pair[1]), "{templates:#?}");
        templates[0].clone()
    }

    #[test]
    fn numbers_units_and_shapes_are_no_difference() {
        let needed = same(&[
            "needed more than the 3.0 GiB it had. Its last report had it at 2.9 GiB",
            "needed more than the 512.0 MiB it had. Its last report had it at 500,5 MiB",
            "needed more than the 1'024 MB it had. Its last report had it at 99 %",
        ]);
        assert_eq!(needed, "needed more than the <number> it had. its last report had it at <number>");
        same(&["no report for 10s", "no report for 1 h", "no report for 30 minutes"]);
        same(&["shape mismatch [2, 3], [3]", "shape mismatch [2, 3, 4], [5, 6]"]);
        same(&["at layers.12.mlp", "at layers.3.mlp"]);
    }

    #[test]
    fn names_of_things_are_no_difference() {
        same(&["cannot write /out/model.safetensors: full", "cannot write /out/checkpoints/step-5/x: full"]);
        same(&["job 01M7WJ0YPGWYQDX391S15J5M2F failed", "job 01JD3Z7M8K4W5V6X7Y8Z9A0B1C failed"]);
        same(&["no field `foo`", "no field `lora_rank`"]);
        same(&["line 3 of rows.jsonl: bad", "line 77 of other-rows.jsonl: bad"]);
        same(&["2026-11-20T13:42:37.123Z died", "2025-01-02 03:04:05,678 died"]);
        same(&["asked https://hub.example/a/b?c=1 twice", "asked http://127.0.0.1:9/x twice"]);
        same(&["at 0x7f3c00aa dead", "at 0xdeadbeef dead"]);
        same(&["GPU-12345678-1234-1234-1234-123456789012 fell", "GPU-ab345678-12cd-1234-1234-1234567890ef fell"]);
        same(&["digest 0123456789ab", "digest fedcba9876543210"]);
    }

    #[test]
    fn how_many_things_a_list_names_is_no_difference() {
        same(&["is NaN; rows: a.jsonl, line 3", "is NaN; rows: b.jsonl, line 7, b.jsonl, line 81, c.jsonl, line 2"]);
        same(&["fits none, such as `a`; see", "fits none, such as `b`, `c`, `d`; see"]);
        same(&["tensor model.layers.3.mlp.down_proj.weight", "tensor blk.0.attn_q.weight", "tensor model.norm.weight"]);
        same(&[
            "such as model.layers.0.q_proj",
            "such as model.layers.0.mlp.up_proj, model.layers.1.q_proj, model.layers.1.v_proj",
        ]);
    }

    #[test]
    fn words_are_a_difference_and_numbers_within_them_are_part_of_them() {
        let differ = [
            "cannot read the model",
            "cannot read the dataset",
            "type q4_0 is not known",
            "type q8_0 is not known",
            "torch.OutOfMemoryError",
            "torch.cuda.OutOfMemoryError",
            "sm_80 is too old",
            "sm_90 is too old",
            "torch.nn.modules is gone",
            "torch.nn.functional is gone",
        ];
        let mut templates: Vec<_> = differ.iter().map(|message| Template::of(message).text).collect();
        templates.sort_unstable();
        templates.dedup();
        assert_eq!(templates.len(), differ.len());
    }

    #[test]
    fn an_error_of_the_system_is_its_number_whatever_language_the_host_speaks() {
        let english = "write /out/x: No space left on device (os error 28)";
        let german = "write /out/y: Auf dem Gerät ist kein Speicherplatz mehr verfügbar (os error 28)";
        assert_eq!(same(&[english, german]), "write <path>: os error 28");
        same(&["OSError: [Errno 28] No space left on device: '/x'", "OSError: [Errno 28] Kein Platz: '/y'"]);
        same(&[
            "cannot keep it: Os { code: 28, kind: StorageFull, message: \"No space left on device\" }",
            "cannot keep it: Os { code: 28, kind: StorageFull, message: \"Kein Platz\" }",
        ]);
        assert_eq!(
            Template::of("x: Os { code: 13, kind: PermissionDenied, message: \"no\" }").system_error(),
            Some(13)
        );
        assert_ne!(Template::of(english).text, Template::of("write /out/x: Permission denied (os error 13)").text);
    }

    #[test]
    fn without_its_number_it_is_known_by_its_words() {
        let told = |words: &str| Template::of(&format!("cp: cannot create '/x': {words}")).system_error();
        for words in ["Permission denied", "Keine Berechtigung", "Permission non accordée", "許可がありません"]
        {
            assert_eq!(told(words), Some(13), "{words}");
        }
        same(&[
            "open /x: No space left on device (os error 28)",
            "open /y: Aucun espace disponible sur le périphérique",
        ]);
        assert_eq!(Template::of("OSError: [Errno 28] Kein Platz: '/y'").system_error(), Some(28));
        for other in ["KeyError: '[Errno 13] x'", "ValueError: row 3: Permission denied", "it said \"x (os error 13)\""]
        {
            assert_eq!(Template::of(other).system_error(), None, "{other}");
        }
    }

    #[test]
    fn the_gist_is_the_first_sentence() {
        let gist = |text: &str| Template::of(text).gist().to_owned();
        assert_eq!(
            gist("torch.OutOfMemoryError: CUDA out of memory. Tried 3 GiB."),
            "torch.outofmemoryerror: cuda out of memory"
        );
        assert_eq!(gist("cannot map x"), "cannot map x");
        assert_eq!(gist("layer 7 e.g. x is 3"), "layer <number> e.g. x is <number>");
    }

    #[test]
    fn what_stood_in_the_slots_is_kept() {
        let template = Template::of("row 3 of `faq` needs 700 tokens");
        assert_eq!(template.text, "row <number> of <quoted> needs <number> tokens");
        assert_eq!(template.slots, ["3", "`faq`", "700"]);
    }

    proptest! {
        #[test]
        fn any_text_has_a_template_of_one_line(text in any::<String>()) {
            prop_assert!(!Template::of(&text).text.contains('\n'));
        }

        #[test]
        fn other_numbers_and_other_wrapping_change_nothing(a in 0..u64::MAX, b in 0.0..1e6f64, wrap in 0..4usize) {
            let gap = [" ", "\n", "  \t", "\n    "][wrap];
            let message = format!("tried to allocate{gap}{b:.2} MiB of{gap}{a} bytes");
            prop_assert_eq!(Template::of(&message).text, "tried to allocate <number> of <number>");
        }
    }
}
