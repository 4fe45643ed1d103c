//! `drydock datasets`

use std::path::Path;

use drydock_spec::dataset::{Columns, Format};
use serde_json::Value;

use super::client::Client;
use super::error::{CliError, Exit};
use super::flags::{names_of, pairs};
use super::models::own_name;
use super::out::Out;
use super::text::{ago, count, now_ms, one_line, shorten, size};
use super::upload::upload;
use crate::api::{DatasetList, DatasetView, LoadDataset, LoadedDataset, RowsPreview};

/// What to do with datasets.
#[derive(Debug, clap::Args)]
pub(super) struct Datasets {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List the datasets in the store (the default)
    List,
    /// Add a dataset, every row of it checked, and show its first rows
    Add(Box<Add>),
    /// Forget a dataset
    Remove { name: String },
}

#[derive(Debug, clap::Args)]
struct Add {
    /// A .jsonl, .json or .txt file of this machine, a folder of them, or hf:owner/name[@revision]/path.jsonl
    source: String,
    /// The name to give it [default: taken from the source]
    #[arg(long)]
    name: Option<String>,
    /// Which column holds what: messages, prompt, completion, text, instruction, input, output, chosen, rejected, label,
    /// question, choices or answer
    #[arg(long = "column", value_name = "NAME=COLUMN", value_delimiter = ',')]
    columns: Vec<String>,
    /// A model whose chat template the preview is rendered with
    #[arg(long)]
    model: Option<String>,
}

const ENDINGS: &[&str] = &[".jsonl", ".json", ".txt"];

impl Datasets {
    pub(super) async fn run(self, client: &Client, out: &mut Out) -> Result<Exit, CliError> {
        match self.action.unwrap_or(Action::List) {
            Action::List => list(client, out).await?,
            Action::Add(add) => add.add(client, out).await?,
            Action::Remove { name } => {
                client.delete(&["v1", "datasets", &name]).await?;
                out.note(format!("dataset `{name}` is forgotten"));
            }
        }
        Ok(Exit::Ok)
    }
}

async fn list(client: &Client, out: &mut Out) -> Result<(), CliError> {
    let list: DatasetList = client.get(&["v1", "datasets"], &[]).await?;
    if out.json {
        return out.document(&list);
    }
    let now = now_ms();
    let row = |dataset: &DatasetView| {
        [
            dataset.name.clone(),
            format_name(dataset.format).to_owned(),
            count(dataset.rows),
            size(dataset.bytes),
            shorten(&dataset.origin, 50),
            ago(dataset.added_ms, now),
        ]
    };
    out.table(["NAME", "FORMAT", "ROWS", "SIZE", "ORIGIN", "ADDED"], list.datasets.iter().map(row).collect())
}

impl Add {
    async fn add(self, client: &Client, out: &mut Out) -> Result<(), CliError> {
        let columns = self.columns()?;
        let mut request = LoadDataset { name: self.name, columns, model: self.model, ..LoadDataset::default() };
        if self.source.starts_with("hf:") {
            request.source = Some(self.source);
        } else {
            let path = Path::new(&self.source);
            request.files = upload(client, path, ENDINGS, out).await?;
            request.name = request.name.or_else(|| own_name(path));
        }
        let loaded: LoadedDataset = client.import(&["v1", "datasets"], &request).await?;
        if out.json {
            return out.document(&loaded);
        }
        out.line(&loaded.dataset.name)?;
        out.note(format!("{} rows in the form {}", count(loaded.dataset.rows), format_name(loaded.dataset.format)));
        print_rows(&loaded.preview, out)?;
        for warning in &loaded.warnings {
            out.note(format!("warning: {}", one_line(warning)));
        }
        Ok(())
    }

    fn columns(&self) -> Result<Option<Columns>, CliError> {
        if self.columns.is_empty() {
            return Ok(None);
        }
        let names = names_of::<Columns>();
        let wrong = |text: String| {
            CliError::mistaken(
                format!("--column {text}: not of the form NAME=COLUMN"),
                format!("write for example --column prompt=question; the names are {}", names.join(", ")),
            )
        };
        let map = pairs(&self.columns, &names).map_err(wrong)?;
        serde_json::from_value(Value::Object(map)).map(Some).map_err(|error| wrong(error.to_string()))
    }
}

/// The first rows as text, on stderr: they are an illustration, not the result.
pub(super) fn print_rows(preview: &RowsPreview, out: &mut Out) -> Result<(), CliError> {
    for (index, row) in preview.rendered.iter().enumerate() {
        let tokens = match (row.supervised_tokens, row.tokens) {
            (Some(supervised), Some(tokens)) => format!(" ({supervised} of {tokens} tokens are learnt)"),
            _ => String::new(),
        };
        out.note(format!("row {}{tokens}", index + 1));
        for line in shorten(&row.text, 1000).lines() {
            out.note(format!("    {line}"));
        }
        out.note(format!("    -> learnt: {}", shorten(&one_line(&row.supervised), 200)));
    }
    Ok(())
}

fn format_name(format: Format) -> &'static str {
    match format {
        Format::Messages => "messages",
        Format::PromptCompletion => "prompt_completion",
        Format::Text => "text",
        Format::Alpaca => "alpaca",
        Format::Preference => "preference",
        Format::Labelled => "labelled",
        Format::MultipleChoice => "multiple_choice",
        Format::Squad => "squad",
    }
}
