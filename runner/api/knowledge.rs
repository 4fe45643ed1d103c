//! Experience of other installations, as whoever imports it sees it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::store::Imported;

/// What an import came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImportedKnowledge {
    /// The installation whose experience it is.
    pub origin: String,
    #[serde(flatten)]
    pub imported: Imported,
}
