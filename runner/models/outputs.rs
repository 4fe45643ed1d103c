//! What a job has left, as somebody sees it who wants a model: told from the files, so that any worker's will do.

use std::collections::BTreeMap;

use crate::artifacts::Artifact;

/// What a worker calls a GGUF file that holds no model but which values of one matter.
const IMPORTANCE_MATRIX: &str = "importance_matrix";

/// Something among a job's artifacts that a job can read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Output {
    /// A folder below the output folder, empty for that folder itself; or a GGUF file.
    pub(super) path: String,
    pub(super) made: Made,
    /// Its files.
    pub(super) files: Vec<Artifact>,
}

/// What it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Made {
    /// A model in Hugging Face's form.
    Model,
    Gguf,
    /// An adapter in PEFT's form.
    Adapter,
}

/// Nothing of what is there can be meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NotThere {
    pub(super) problem: String,
    pub(super) next: String,
}

/// The name of a file without its folders.
pub(super) fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Everything among the artifacts that is a model or an adapter, by path.
pub(super) fn among(artifacts: &[Artifact]) -> Vec<Output> {
    let mut folders: BTreeMap<&str, Vec<&Artifact>> = BTreeMap::new();
    for artifact in artifacts {
        let folder = artifact.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        folders.entry(folder).or_default().push(artifact);
    }
    folders.into_iter().flat_map(|(folder, files)| of_folder(folder, &files)).collect()
}

fn of_folder(folder: &str, files: &[&Artifact]) -> Vec<Output> {
    let has = |name: &str| files.iter().any(|file| file_name(&file.path) == name);
    let is_model = |file: &&&Artifact| file.role.as_deref() != Some(IMPORTANCE_MATRIX);
    let ggufs = files.iter().filter(|file| file.path.ends_with(".gguf")).filter(is_model).map(|file| Output {
        path: file.path.clone(),
        made: Made::Gguf,
        files: vec![(*file).clone()],
    });
    let weights = files.iter().any(|file| file.path.ends_with(".safetensors"));
    let made = match () {
        () if weights && has("adapter_config.json") => Some(Made::Adapter),
        () if weights && has("config.json") => Some(Made::Model),
        () => None,
    };
    let whole = made.map(|made| Output {
        path: folder.to_owned(),
        made,
        files: files.iter().filter(|file| !file.path.ends_with(".gguf")).map(|file| (*file).clone()).collect(),
    });
    ggufs.chain(whole).collect()
}

/// The one whole model among these, or the one at `path`.
pub(super) fn whole<'a>(outputs: &'a [Output], path: Option<&str>) -> Result<&'a Output, NotThere> {
    one(outputs, path, "a whole model", |made| made != Made::Adapter)
}

/// The one adapter among these, or the one at `path`.
pub(super) fn adapter<'a>(outputs: &'a [Output], path: Option<&str>) -> Result<&'a Output, NotThere> {
    one(outputs, path, "an adapter", |made| made == Made::Adapter)
}

fn one<'a>(
    outputs: &'a [Output],
    path: Option<&str>,
    wanted: &str,
    fits: impl Fn(Made) -> bool,
) -> Result<&'a Output, NotThere> {
    let at = |output: &&Output| path.is_none_or(|path| output.path == path);
    let fitting: Vec<_> = outputs.iter().filter(|output| fits(output.made)).filter(at).collect();
    match fitting.as_slice() {
        [output] => Ok(output),
        [] => {
            let place = path.map(|path| format!(" at `{path}`")).unwrap_or_default();
            let problem = format!("the job left {}, not {wanted}{place}", told(outputs));
            Err(NotThere { problem, next: next(outputs) })
        }
        several => {
            let paths: Vec<_> = several.iter().map(|output| format!("`{}`", output.path)).collect();
            let problem = format!("the job left several: {}", paths.join(", "));
            Err(NotThere { problem, next: "put the path of one of them behind the id: job:<id>/<path>".into() })
        }
    }
}

fn told(outputs: &[Output]) -> String {
    let all: Vec<_> = outputs
        .iter()
        .map(|output| {
            let what = match output.made {
                Made::Model => "a model",
                Made::Gguf => "a GGUF file",
                Made::Adapter => "an adapter",
            };
            if output.path.is_empty() { what.to_owned() } else { format!("{what} (`{}`)", output.path) }
        })
        .collect();
    if all.is_empty() { "neither a model nor an adapter".into() } else { all.join(" and ") }
}

fn next(outputs: &[Output]) -> String {
    match outputs {
        [] => "name a finetune, a training or a quantization".into(),
        _ => "list_artifacts shows what the job left".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifact(path: &str) -> Artifact {
        Artifact { path: path.to_owned(), role: None, bytes: 1, sha256: "0".repeat(64) }
    }

    fn among(paths: &[&str]) -> Vec<Output> {
        super::among(&paths.iter().map(|path| artifact(path)).collect::<Vec<_>>())
    }

    const BOTH: [&str; 5] = [
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "adapter/tokenizer.json",
        "merged/config.json",
        "merged/model.safetensors",
    ];

    #[test]
    fn models_and_adapters_are_told_apart() {
        let left = among(&BOTH);
        assert_eq!(whole(&left, None).unwrap().path, "merged");
        let adapter = adapter(&left, None).unwrap();
        assert_eq!((adapter.path.as_str(), adapter.files.len()), ("adapter", 3));
        assert_eq!(left.len(), 2);
    }

    #[test]
    fn a_gguf_file_is_a_model_of_its_own_wherever_it_lies() {
        let mut files: Vec<_> = ["imatrix.gguf", "model/model-Q4_K_M.gguf", "quantize.json"].map(artifact).into();
        files[0].role = Some(IMPORTANCE_MATRIX.into());
        let left = super::among(&files);
        assert_eq!(whole(&left, None).unwrap().path, "model/model-Q4_K_M.gguf");
        let two = among(&["a.gguf", "b.gguf"]);
        assert_eq!(whole(&two, Some("b.gguf")).unwrap().path, "b.gguf");
        let refused = whole(&two, None).unwrap_err();
        assert_eq!(refused.problem, "the job left several: `a.gguf`, `b.gguf`");
    }

    #[test]
    fn what_is_not_there_is_answered_with_what_is() {
        let refused = adapter(&among(&["model.gguf"]), None).unwrap_err();
        assert_eq!(refused.problem, "the job left a GGUF file (`model.gguf`), not an adapter");
        let refused = whole(&among(&BOTH), Some("adapter")).unwrap_err();
        assert!(refused.problem.ends_with("not a whole model at `adapter`"), "{}", refused.problem);
        let nothing = whole(&among(&["results.json"]), None).unwrap_err();
        assert!(nothing.problem.contains("neither a model nor an adapter"), "{}", nothing.problem);
    }
}
