//! What the server says unasked: log messages while a tool goes on, and that a list has changed.

use std::time::Duration;

use rmcp::model::{
    CallToolResponse, CallToolResult, ContentBlock, ErrorData, LoggingLevel, LoggingMessageNotificationParam,
    PromptListChangedNotification, ProtocolVersion, ServerNotification, SubscriptionFilter,
    ToolListChangedNotification,
};
use rmcp::service::{RequestContext, RoleServer, SubscriptionContext};
use serde_json::json;
use tokio::sync::watch;

/// Tells what a tool does while it does it, at level `info`.
pub(crate) async fn log_at_work(context: &RequestContext<RoleServer>) -> Result<(), ErrorData> {
    for news in ["Tool execution started", "Tool processing data", "Tool execution completed"] {
        if hears_info(context) {
            let message = LoggingMessageNotificationParam::new(LoggingLevel::Info, json!(news)).with_logger("test");
            let told = context.peer.notify_logging_message(message).await;
            told.map_err(|error| ErrorData::internal_error(error.to_string(), None))?;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// A modern request says for itself what it wants to hear. What an older client has set is forgotten with its request,
/// for there is no session to keep it; then the revision lets the server choose.
fn hears_info(context: &RequestContext<RoleServer>) -> bool {
    let modern = context.protocol_version().is_some_and(|version| version >= ProtocolVersion::V_2026_07_28);
    match context.meta.log_level() {
        Some(level) => level as u8 <= LoggingLevel::Info as u8,
        None => !modern,
    }
}

/// Whether a tool and a prompt are there that come and go.
#[derive(Clone)]
pub(crate) struct Lists {
    pub(crate) tool: watch::Sender<bool>,
    pub(crate) prompt: watch::Sender<bool>,
}

impl Lists {
    pub(crate) fn new() -> Self {
        Self { tool: watch::Sender::new(false), prompt: watch::Sender::new(false) }
    }

    /// Tells a subscriber of every change that it wants to hear of, until it goes.
    pub(crate) async fn follow(&self, subscription: &SubscriptionContext) -> Result<(), ErrorData> {
        let SubscriptionFilter { tools_list_changed, prompts_list_changed, .. } = subscription.accepted().clone();
        let (mut tool, mut prompt) = (self.tool.subscribe(), self.prompt.subscribe());
        loop {
            let news = tokio::select! {
                Ok(()) = tool.changed(), if tools_list_changed == Some(true) => {
                    ServerNotification::ToolListChangedNotification(ToolListChangedNotification::default())
                }
                Ok(()) = prompt.changed(), if prompts_list_changed == Some(true) => {
                    ServerNotification::PromptListChangedNotification(PromptListChangedNotification::default())
                }
                () = subscription.cancelled() => return Ok(()),
            };
            let told = subscription.sink().send(news).await;
            told.map_err(|error| ErrorData::internal_error(error.to_string(), None))?;
        }
    }
}

/// Lets the tool or the prompt come or go.
pub(crate) fn toggle(there: &watch::Sender<bool>) -> CallToolResponse {
    there.send_modify(|there| *there = !*there);
    CallToolResult::success(vec![ContentBlock::text("done")]).into()
}
