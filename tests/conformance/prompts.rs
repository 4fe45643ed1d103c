//! Prompts to get, and what may stand for their arguments.

use rmcp::model::{
    CompleteRequestParams, CompleteResult, CompletionInfo, ContentBlock, ErrorData, GetPromptRequestParams,
    GetPromptResult, InputResponses, ListPromptsResult, Prompt, PromptArgument, PromptMessage, Reference, Role,
};

use crate::resources::TTL_MS;
use crate::tools::{PIXEL, resource};

/// The prompt that asks its client for something first.
pub(crate) const ASKING: &str = "test_input_required_result_prompt";

/// The prompt that comes and goes.
const PASSING: &str = "test_passing_prompt";

/// What may stand for the arguments of `test_prompt_with_arguments`.
const WORDS: [&str; 3] = ["testValue1", "testValue2", "something else"];

/// The prompts there are, with or without the one that comes and goes.
pub(crate) fn list(passing: bool) -> ListPromptsResult {
    let mut prompts = vec![
        prompt("test_simple_prompt", &[]),
        prompt("test_prompt_with_arguments", &["arg1", "arg2"]),
        prompt("test_prompt_with_embedded_resource", &["resourceUri"]),
        prompt("test_prompt_with_image", &[]),
        prompt(ASKING, &[]),
    ];
    if passing {
        prompts.push(prompt(PASSING, &[]));
    }
    ListPromptsResult::with_all_items(prompts).with_ttl_ms(TTL_MS)
}

fn prompt(name: &str, arguments: &[&str]) -> Prompt {
    let arguments = arguments.iter().map(|name| PromptArgument::new(*name).with_required(true)).collect();
    Prompt::new(name, Some("A prompt of the conformance tests."), Some(arguments))
}

pub(crate) fn get(request: &GetPromptRequestParams) -> Result<GetPromptResult, ErrorData> {
    let text = |text: &str| PromptMessage::new_text(Role::User, text);
    let messages = match request.name.as_str() {
        "test_simple_prompt" | PASSING => vec![text("This is a simple prompt for testing.")],
        "test_prompt_with_arguments" => {
            let (one, two) = (argument(request, "arg1")?, argument(request, "arg2")?);
            vec![text(&format!("Prompt with arguments: arg1='{one}', arg2='{two}'"))]
        }
        "test_prompt_with_embedded_resource" => {
            let uri = argument(request, "resourceUri")?;
            let embedded = resource(uri, "text/plain", "Embedded resource content for testing.");
            vec![PromptMessage::new(Role::User, embedded), text("Please process the embedded resource above.")]
        }
        "test_prompt_with_image" => {
            let image = ContentBlock::image(PIXEL, "image/png");
            vec![PromptMessage::new(Role::User, image), text("Please analyze the image above.")]
        }
        name => {
            let message = format!("no prompt `{name}`; prompts/list names the prompts there are");
            return Err(ErrorData::invalid_params(message, None));
        }
    };
    Ok(GetPromptResult::new(messages))
}

/// The prompt that asks, around what it has heard.
pub(crate) fn around(heard: &InputResponses) -> GetPromptResult {
    let context = heard.get("user_context").and_then(|answer| answer["content"]["context"].as_str());
    let text = format!("Use this context: {}", context.unwrap_or("none was given"));
    GetPromptResult::new(vec![PromptMessage::new_text(Role::User, text)])
}

fn argument<'a>(request: &'a GetPromptRequestParams, name: &str) -> Result<&'a str, ErrorData> {
    let given = request.arguments.as_ref().and_then(|arguments| arguments.get(name)?.as_str());
    given.ok_or_else(|| {
        let message = format!("prompt `{}` needs the text `{name}`; give it among the arguments", request.name);
        ErrorData::invalid_params(message, None)
    })
}

/// The words that begin with what was typed so far.
pub(crate) fn complete(request: &CompleteRequestParams) -> Result<CompleteResult, ErrorData> {
    let known = match &request.r#ref {
        Reference::Prompt(prompt) if prompt.name == "test_prompt_with_arguments" => WORDS.as_slice(),
        _ => &[],
    };
    let typed = request.argument.value.as_str();
    let values = known.iter().filter(|word| word.starts_with(typed)).map(ToString::to_string).collect();
    let completion = CompletionInfo::with_all_values(values).map_err(|error| ErrorData::internal_error(error, None))?;
    Ok(CompleteResult::new(completion))
}
