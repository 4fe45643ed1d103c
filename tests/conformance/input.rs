//! Tools and a prompt that must hear something from the client before they can answer (SEP-2322). The server keeps
//! nothing between two rounds: what it has to remember travels with the client, sealed.

use std::time::Duration;

use rmcp::model::{
    CallToolRequestParams, ClientCapabilities, CreateMessageResult, ElicitResult, ErrorData, GetPromptRequestParams,
    InputRequest, InputRequests, InputRequiredResult, InputResponses, ListRootsResult, RequestStateCodec, SealOptions,
};
use rmcp::service::{RequestContext, RoleServer};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// How long a client may think about a question.
const PATIENCE: Duration = Duration::from_secs(600);

/// The tools here; the prompt is `test_input_required_result_prompt`.
pub(crate) const TOOLS: [&str; 12] = [
    "test_input_required_result_elicitation",
    "test_input_required_result_sampling",
    "test_input_required_result_list_roots",
    "test_input_required_result_request_state",
    "test_input_required_result_multiple_inputs",
    "test_input_required_result_multi_round",
    "test_input_required_result_tampered_state",
    "test_input_required_result_capabilities",
    "test_streaming_elicitation",
    "test_missing_capability",
    "test_tool_with_task",
    "confirm_delete",
];

/// What is asked before `name` can answer, one map of questions for each round.
fn rounds(name: &str) -> Vec<InputRequests> {
    let user = ("user_name", elicitation("What is your name?", "name", "string"));
    let confirm = ("confirm", elicitation("Please confirm", "ok", "boolean"));
    let capital = ("capital_question", sampling("What is the capital of France?"));
    let roots = ("client_roots", json!({"method": "roots/list", "params": {}}));
    let rounds = match name {
        "test_input_required_result_sampling" | "test_missing_capability" => vec![vec![capital]],
        "test_input_required_result_list_roots" => vec![vec![roots]],
        "test_input_required_result_request_state" | "test_input_required_result_tampered_state" | "confirm_delete" => {
            vec![vec![confirm]]
        }
        "test_input_required_result_multiple_inputs" => {
            vec![vec![user, ("greeting", sampling("Generate a greeting")), roots]]
        }
        "test_input_required_result_multi_round" => vec![
            vec![("step1", elicitation("Step 1: What is your name?", "name", "string"))],
            vec![("step2", elicitation("Step 2: What is your favorite color?", "color", "string"))],
        ],
        "test_input_required_result_capabilities" => vec![vec![user, capital]],
        "test_input_required_result_prompt" => {
            vec![vec![("user_context", elicitation("What context should the prompt use?", "context", "string"))]]
        }
        _ => vec![vec![user]],
    };
    let typed = |(key, request): (&str, Value)| (key.to_owned(), serde_json::from_value(request).unwrap());
    rounds.into_iter().map(|round| round.into_iter().map(typed).collect()).collect()
}

fn elicitation(message: &str, field: &str, kind: &str) -> Value {
    let schema = json!({"type": "object", "properties": {field: {"type": kind}}, "required": [field]});
    json!({"method": "elicitation/create", "params": {"message": message, "requestedSchema": schema}})
}

fn sampling(text: &str) -> Value {
    let message = json!({"role": "user", "content": {"type": "text", "text": text}});
    json!({"method": "sampling/createMessage", "params": {"messages": [message], "maxTokens": 100}})
}

/// Whether `name` gives its client a state to bring back. The others begin anew with every call.
fn remembers(name: &str) -> bool {
    ["request_state", "multiple_inputs", "multi_round", "tampered_state"].iter().any(|end| name.ends_with(end))
}

/// What a client has said, in a call or in a request for a prompt.
pub(crate) struct Said<'a> {
    name: &'a str,
    responses: Option<&'a InputResponses>,
    state: Option<&'a str>,
}

impl<'a> From<&'a CallToolRequestParams> for Said<'a> {
    fn from(request: &'a CallToolRequestParams) -> Self {
        let state = request.request_state.as_deref();
        Self { name: &request.name, responses: request.input_responses.as_ref(), state }
    }
}

impl<'a> From<&'a GetPromptRequestParams> for Said<'a> {
    fn from(request: &'a GetPromptRequestParams) -> Self {
        let state = request.request_state.as_deref();
        Self { name: &request.name, responses: request.input_responses.as_ref(), state }
    }
}

/// Where a dialogue stands.
pub(crate) enum Turn {
    Ask(InputRequiredResult),
    Done(InputResponses),
}

/// What the client carries from one round to the next.
#[derive(Default, Serialize, Deserialize)]
struct Memory {
    /// The round whose answers are awaited, from 0.
    round: usize,
    heard: InputResponses,
}

/// Leads all dialogues, with a key of its own to seal what the clients carry.
#[derive(Clone)]
pub(crate) struct Dialogues(RequestStateCodec);

impl Dialogues {
    pub(crate) fn new() -> Self {
        Self(RequestStateCodec::try_new(rand::random::<[u8; 32]>()).unwrap())
    }

    /// Takes in what was said, and asks on or is done.
    pub(crate) fn go_on(&self, said: &Said<'_>, context: &RequestContext<RoleServer>) -> Result<Turn, ErrorData> {
        let mut memory = self.open(said)?;
        let mut rounds = rounds(said.name);
        // This one makes do with the questions that the client answers.
        if said.name == "test_input_required_result_capabilities" {
            rounds[0].retain(|_, request| answers(context, request));
        }
        // Whoever should have brought a state and did not is asked as if for the first time.
        let responses = said.responses.filter(|_| said.state.is_some() || !remembers(said.name));
        if let Some(heard) = heard(&rounds[memory.round], responses)? {
            memory.heard.extend(heard);
            memory.round += 1;
        }
        let Some(round) = rounds.get(memory.round) else { return Ok(Turn::Done(memory.heard)) };
        for request in round.values() {
            insist(context, request)?;
        }
        let state = remembers(said.name).then(|| self.seal(said.name, &memory));
        Ok(Turn::Ask(InputRequiredResult::new(Some(round.clone()), state)))
    }

    fn seal(&self, name: &str, memory: &Memory) -> String {
        let options = SealOptions::new().associated_data(name.as_bytes()).ttl(PATIENCE);
        self.0.seal_json_with(memory, &options).unwrap()
    }

    fn open(&self, said: &Said<'_>) -> Result<Memory, ErrorData> {
        let Some(state) = said.state else { return Ok(Memory::default()) };
        self.0.open_json_with(state, said.name.as_bytes()).map_err(|error| {
            let message = format!("requestState was refused: {error}; call `{}` again without it", said.name);
            ErrorData::invalid_params(message, None)
        })
    }
}

/// The answers to all questions of a round, or `None` if one is missing. Answers to other questions are nobody's.
fn heard(round: &InputRequests, responses: Option<&InputResponses>) -> Result<Option<InputResponses>, ErrorData> {
    let mut heard = InputResponses::new();
    for (key, request) in round {
        let Some(response) = responses.and_then(|responses| responses.get(key)) else { return Ok(None) };
        let fits = match request {
            InputRequest::Elicitation(_) => ElicitResult::deserialize(response).map(drop),
            InputRequest::CreateMessage(_) => CreateMessageResult::deserialize(response).map(drop),
            _ => ListRootsResult::deserialize(response).map(drop),
        };
        fits.map_err(|error| ErrorData::invalid_params(format!("inputResponses.{key} is no answer: {error}"), None))?;
        heard.insert(key.clone(), response.clone());
    }
    Ok(Some(heard))
}

/// The client's capability that a question needs.
fn capability(request: &InputRequest) -> &'static str {
    match request {
        InputRequest::Elicitation(_) => "elicitation",
        InputRequest::CreateMessage(_) => "sampling",
        _ => "roots",
    }
}

/// Whether the client has declared that it answers such a question.
fn answers(context: &RequestContext<RoleServer>, request: &InputRequest) -> bool {
    let declared = serde_json::to_value(context.client_capabilities().unwrap_or_default()).unwrap();
    declared.get(capability(request)).is_some()
}

/// All others cannot do without.
fn insist(context: &RequestContext<RoleServer>, request: &InputRequest) -> Result<(), ErrorData> {
    if answers(context, request) {
        return Ok(());
    }
    let needed: ClientCapabilities = serde_json::from_value(json!({capability(request): {}})).unwrap();
    Err(ErrorData::missing_required_client_capability(needed))
}

/// The name that a client has told.
pub(crate) fn user(heard: &InputResponses) -> Option<&str> {
    heard.get("user_name").and_then(|answer| answer["content"]["name"].as_str())
}

/// What a tool makes of the answers.
pub(crate) fn told(heard: &InputResponses) -> String {
    match user(heard) {
        Some(name) => format!("Hello, {name}!"),
        None => format!("state-ok, and this was heard: {}", json!(heard)),
    }
}
