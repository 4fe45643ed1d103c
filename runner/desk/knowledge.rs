//! Experience with failures, for another installation and from one.

use super::{Desk, DeskError};
use crate::api::ImportedKnowledge;
use crate::knowledge::{self, BadLine, Origin};
use crate::redact::Redactor;

/// Knowledge cannot be exported or imported so.
#[derive(Debug, thiserror::Error)]
pub enum KnowledgeError {
    #[error(transparent)]
    Line(#[from] BadLine),
    #[error("the file is an export of this very installation ({0}), which knows all of it")]
    Own(String),
    #[error("`{0}` is no name for an installation")]
    Name(String),
}

impl Desk {
    /// What this installation has learnt, as a file that names nobody. `name` is what others are to call it, `notes`
    /// whether people's reasons for their advice go with it.
    pub async fn export_knowledge(&self, name: Option<String>, notes: bool) -> Result<String, DeskError> {
        if let Some(name) = name.as_ref().filter(|name| !knowledge::is_name(name)) {
            return Err(KnowledgeError::Name(name.clone()).into());
        }
        let origin = Origin { installation: self.store.public_id().await?, name };
        let names = self.store.private_names().await?.into_iter().chain(of_this_host());
        let state = self.config.state_dir.iter().filter_map(|part| Some(part.to_str()?.to_owned()));
        let redactor = Redactor::new(names.chain(state));
        Ok(knowledge::write(&origin, &self.store.known().await?, &redactor, notes))
    }

    /// Takes over what another installation has learnt, as advice.
    pub async fn import_knowledge(&self, text: &str) -> Result<ImportedKnowledge, DeskError> {
        let experience = knowledge::read(text).map_err(KnowledgeError::from)?;
        let origin = experience.origin.to_string();
        if experience.origin.installation == self.store.public_id().await? {
            return Err(KnowledgeError::Own(origin).into());
        }
        let imported = self.store.import(&experience).await?;
        tracing::info!(%origin, added = imported.added, changed = imported.changed, "experience of another installation");
        Ok(ImportedKnowledge { origin, imported })
    }
}

/// The names of the host and of whoever runs the gateway.
fn of_this_host() -> impl Iterator<Item = String> {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let people = ["USER", "LOGNAME", "SUDO_USER"].into_iter().filter_map(|name| std::env::var(name).ok());
    std::iter::once(host).chain(people).filter(|name| name != "root")
}
