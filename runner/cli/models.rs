//! `drydock models`

use std::path::Path;

use super::client::Client;
use super::error::{CliError, Exit};
use super::out::Out;
use super::text::{ago, count, now_ms, shorten, size};
use super::upload::upload;
use crate::api::{AddModel, ModelList, ModelView};

/// What to do with models.
#[derive(Debug, clap::Args)]
pub(super) struct Models {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List the models in the store (the default)
    List,
    /// Add a model: a GGUF file or a Hugging Face folder of this machine, one from the hub, or what a job has left
    Add {
        /// A path, hf:owner/name[@revision], or job:<id>[/path]
        source: String,
        /// The name to give it [default: taken from the source]
        #[arg(long)]
        name: Option<String>,
    },
    /// Forget a model
    Remove { name: String },
}

/// Endings of the files that a model is made of. Pickled weights are not among them: reading them runs code.
const ENDINGS: &[&str] = &[".gguf", ".safetensors", ".json", ".jinja"];

impl Models {
    pub(super) async fn run(self, client: &Client, out: &mut Out) -> Result<Exit, CliError> {
        match self.action.unwrap_or(Action::List) {
            Action::List => list(client, out).await?,
            Action::Add { source, name } => add(client, source, name, out).await?,
            Action::Remove { name } => {
                client.delete(&["v1", "models", &name]).await?;
                out.note(format!("model `{name}` is forgotten"));
            }
        }
        Ok(Exit::Ok)
    }
}

async fn list(client: &Client, out: &mut Out) -> Result<(), CliError> {
    let list: ModelList = client.get(&["v1", "models"], &[]).await?;
    if out.json {
        return out.document(&list);
    }
    let now = now_ms();
    let row = |model: &ModelView| {
        [
            model.name.clone(),
            model.architecture.clone(),
            count(model.parameters),
            format!("{} {}", model.format, model.dtype),
            count(model.max_positions.into()),
            size(model.bytes),
            shorten(&model.origin, 50),
            ago(model.added_ms, now),
        ]
    };
    let header = ["NAME", "ARCHITECTURE", "PARAMETERS", "FORMAT", "LENGTH", "SIZE", "ORIGIN", "ADDED"];
    out.table(header, list.models.iter().map(row).collect())
}

async fn add(client: &Client, source: String, name: Option<String>, out: &mut Out) -> Result<(), CliError> {
    let request = if source.starts_with("hf:") || source.starts_with("job:") {
        AddModel { name, source: Some(source), files: Vec::new() }
    } else {
        let path = Path::new(&source);
        let files = upload(client, path, ENDINGS, out).await?;
        if !files.iter().any(|file| file.path.ends_with(".gguf") || file.path.ends_with(".safetensors")) {
            return Err(CliError::mistaken(
                format!("{source}: there are no weights in the form of .gguf or .safetensors"),
                "pickled weights (.bin, .pt, .pth) are not read; save them as safetensors",
            ));
        }
        AddModel { name: name.or_else(|| own_name(path)), source: None, files }
    };
    let model: ModelView = client.import(&["v1", "models"], &request).await?;
    if out.json {
        return out.document(&model);
    }
    out.line(&model.name)?;
    out.note(format!(
        "{} with {} parameters as {} {}; finetune it with `drydock finetune --model {} --dataset ...`",
        model.architecture,
        count(model.parameters),
        model.format,
        model.dtype,
        model.name
    ));
    Ok(())
}

/// The name of a file without its ending, or of a folder, as the store takes names.
pub(super) fn own_name(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    let stem = if path.is_dir() { path.file_name() } else { path.file_stem() };
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c.to_ascii_lowercase() } else { '-' };
    Some(stem?.to_str()?.chars().map(plain).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_gives_its_name_to_what_comes_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("My Model.Q4_1.gguf");
        std::fs::write(&file, "x").unwrap();
        assert_eq!(own_name(&file).as_deref(), Some("my-model.q4_1"));
        std::fs::create_dir(folder.path().join("Tiny.v2")).unwrap();
        assert_eq!(own_name(&folder.path().join("Tiny.v2/.")).as_deref(), Some("tiny.v2"));
    }
}
