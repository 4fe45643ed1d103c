//! `drydock knowledge`

use std::path::{Path, PathBuf};

use super::client::Client;
use super::error::{CliError, Exit};
use super::out::Out;
use super::text::count;
use crate::api::ImportedKnowledge;
use crate::knowledge::MOST_BYTES;

/// What to do with experience.
#[derive(Debug, clap::Args)]
pub(super) struct Knowledge {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Write what was learnt about failures as JSON lines: no names, no paths, no secrets
    Export {
        /// File to write; an existing one is kept [default: stdout]
        file: Option<PathBuf>,
        /// What others are to call this installation, such as team-a [default: eight digits]
        #[arg(long)]
        name: Option<String>,
        /// Write people's reasons for their advice as well, with what looks like a name or a secret cut; read them first
        #[arg(long)]
        notes: bool,
    },
    /// Take over what another installation has learnt, as advice: all of the file, or nothing
    Import {
        /// As written by `drydock knowledge export`
        file: PathBuf,
    },
}

impl Knowledge {
    pub(super) async fn run(self, client: &Client, out: &mut Out) -> Result<Exit, CliError> {
        match self.action {
            Action::Export { file, name, notes } => {
                let mut query = vec![("notes", notes.to_string())];
                query.extend(name.map(|name| ("name", name)));
                let text = client.text(&["v1", "knowledge"], &query).await?;
                match file {
                    Some(file) => write(&file, &text, out)?,
                    None => out.raw(text.as_bytes())?,
                }
            }
            Action::Import { file } => {
                let imported: ImportedKnowledge = client.knowledge(&["v1", "knowledge"], read(&file)?).await?;
                match out.json {
                    true => out.document(&imported)?,
                    false => out.note(told(&imported)),
                }
            }
        }
        Ok(Exit::Ok)
    }
}

fn write(file: &Path, text: &str, out: &mut Out) -> Result<(), CliError> {
    use std::io::Write as _;
    let io = || CliError::io(file.display().to_string());
    let mut written = std::fs::File::create_new(file).map_err(io())?;
    written.write_all(text.as_bytes()).map_err(io())?;
    // The first line says who speaks.
    let lines = text.lines().count().saturating_sub(1);
    out.note(format!("{}: {} failures and remedies", file.display(), count(lines as u64)));
    Ok(())
}

fn read(file: &Path) -> Result<Vec<u8>, CliError> {
    use std::io::Read as _;
    let io = || CliError::io(file.display().to_string());
    let mut bytes = Vec::new();
    let most = MOST_BYTES as u64;
    std::fs::File::open(file).map_err(io())?.take(most + 1).read_to_end(&mut bytes).map_err(io())?;
    if bytes.len() as u64 > most {
        let message = format!("{}: larger than any export", file.display());
        return Err(CliError::mistaken(message, "name the file that `drydock knowledge export` has written"));
    }
    Ok(bytes)
}

fn told(ImportedKnowledge { origin, imported }: &ImportedKnowledge) -> String {
    let remedies = imported.added + imported.changed + imported.unchanged;
    if imported.added + imported.changed == 0 {
        return format!(
            "{origin}: nothing new ({} remedies against {} failures)",
            count(remedies),
            count(imported.failures)
        );
    }
    format!(
        "{origin}: {} remedies new, {} changed, {} as before; {} failures seen there",
        count(imported.added),
        count(imported.changed),
        count(imported.unchanged),
        count(imported.failures)
    )
}
