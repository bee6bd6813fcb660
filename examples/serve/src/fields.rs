//! Fields of requests that would change the answer and cannot be honoured: refused by name. What is in no
//! table and read by nobody is ignored.

use crate::ApiError;
use serde_json::{Value, json};

/// A field that is refused.
pub struct Refused {
    /// Its name.
    pub name: &'static str,
    /// What it may be all the same, because it then asks for nothing; beside null.
    pub neutral: Neutral,
    /// What there is instead, or why there is nothing.
    pub instead: &'static str,
}

/// Values that ask for nothing.
pub enum Neutral {
    /// None does.
    Never,
    /// `false`.
    False,
    /// `true`.
    True,
    /// This number.
    Number(f64),
    /// This text.
    Text(&'static str),
    /// An empty list, object or text.
    Empty,
    /// This list of one text.
    Only(&'static str),
}

use Neutral::{Empty, False, Never, Number, Only, Text, True};

impl Neutral {
    fn is(&self, value: &Value) -> bool {
        match self {
            Never => false,
            False => *value == json!(false),
            True => *value == json!(true),
            Number(number) => value.as_f64() == Some(*number),
            Text(text) => value == text,
            Empty => {
                value.as_str() == Some("")
                    || value.as_array().is_some_and(Vec::is_empty)
                    || value.as_object().is_some_and(serde_json::Map::is_empty)
            }
            Only(text) => *value == json!([text]),
        }
    }
}

const fn no(name: &'static str, neutral: Neutral, instead: &'static str) -> Refused {
    Refused { name, neutral, instead }
}

/// What every route refuses: of OpenAI's fields, of vLLM's, llama.cpp's and ollama's.
pub const ANYWHERE: &[Refused] = &[
    no("use_beam_search", False, "answers are drawn, see temperature"),
    no("length_penalty", Number(1.0), "it belongs to beam search, which there is not"),
    no("early_stopping", False, "it belongs to beam search, which there is not"),
    no("min_tokens", Number(0.0), "the model decides where its answer ends"),
    no("include_stop_str_in_output", False, "an answer ends before its stop string"),
    no("truncate_prompt_tokens", Never, "shorten the prompt"),
    no("prompt_logprobs", Never, "there are log-probabilities of generated tokens alone"),
    no("return_token_ids", False, "answers have texts"),
    no("return_tokens_as_token_ids", False, "log-probabilities have texts and bytes"),
    no("allowed_token_ids", Empty, "use logit_bias or response_format"),
    no("bad_words", Empty, "use logit_bias"),
    no("logits_processors", Empty, "no code of requests is run"),
    no("add_special_tokens", True, "prompts have the control tokens that are written in them"),
    no("guided_json", Never, "use response_format"),
    no("guided_regex", Never, "use structured_outputs.regex"),
    no("guided_choice", Never, "use structured_outputs.choice"),
    no("guided_grammar", Never, "use structured_outputs.grammar"),
    no("grammar", Empty, "use structured_outputs.grammar, a Lark grammar"),
    no("json_schema", Empty, "use response_format"),
    no("n_predict", Never, "use max_tokens"),
    no("num_predict", Never, "use max_tokens"),
    no("repeat_penalty", Number(1.0), "use repetition_penalty"),
    no("repeat_last_n", Never, "repetition_penalty looks at the whole conversation"),
    no("typical_p", Number(1.0), "use top_p or min_p"),
    no("tfs_z", Number(1.0), "use top_p or min_p"),
    no("top_a", Number(0.0), "use top_p or min_p"),
    no("top_n_sigma", Never, "use top_p or min_p"),
    no("xtc_probability", Number(0.0), "use top_p or min_p"),
    no("dry_multiplier", Number(0.0), "use repetition_penalty"),
    no("dynatemp_range", Number(0.0), "use temperature"),
    no("mirostat", Number(0.0), "use temperature"),
    no("samplers", Empty, "the order of the samplers is fixed"),
    no("lora", Empty, "there are no adapters"),
    no("n_probs", Number(0.0), "use logprobs"),
    no("options", Empty, "its fields go beside messages or prompt"),
];

/// What `/v1/chat/completions` refuses beside that.
pub const CHAT: &[Refused] = &[
    no("audio", Never, "answers are texts"),
    no("modalities", Only("text"), "answers are texts"),
    no("web_search_options", Never, "offer a tool that searches"),
    no("verbosity", Text("medium"), "say in a message how long to answer"),
    no("reasoning", Empty, "use reasoning_effort"),
    no("think", Never, "use reasoning_effort"),
    no("format", Empty, "use response_format"),
    no("functions", Never, "use tools"),
    no("function_call", Never, "use tool_choice"),
    no("best_of", Number(1.0), "use n"),
    no("echo", False, "an answer has no prompt in it"),
    no("ignore_eos", False, "only /v1/completions goes on after the end of an answer"),
    no("stop_token_ids", Empty, "use stop"),
    no("skip_special_tokens", True, "control tokens are read, and not part of a message"),
    no("continue_final_message", False, "an answer is a message of its own"),
    no("add_generation_prompt", True, "an answer is a message of its own"),
    no("documents", Empty, "put them into messages"),
    no("chat_template", Never, "the checkpoint's own is used"),
    no("media_io_kwargs", Empty, "messages are texts"),
    no("mm_processor_kwargs", Empty, "messages are texts"),
    no("prompt", Empty, "chats have messages; /v1/completions goes on with a prompt"),
];

/// What `/v1/completions` refuses beside that.
pub const COMPLETIONS: &[Refused] = &[
    no("suffix", Empty, "the model only goes on with a text"),
    no("echo", False, "an answer has no prompt in it"),
    no("best_of", Number(1.0), "use n"),
    no("prompt_embeds", Never, "use prompt"),
    no("messages", Never, "a raw prompt has none; use /v1/chat/completions"),
    no("tools", Empty, "a raw prompt has none; use /v1/chat/completions"),
    no("response_format", Text("text"), "use /v1/chat/completions"),
    no("structured_outputs", Empty, "use /v1/chat/completions"),
    no("reasoning_effort", Never, "it is part of the prompt; use /v1/chat/completions"),
];

/// What `/v1/responses` refuses beside that. Fields of Chat Completions are what a client that changes over
/// may leave behind.
pub const RESPONSES: &[Refused] = &[
    no("audio", Never, "answers are texts"),
    no("background", False, "stay connected, with stream if that takes long"),
    no("best_of", Number(1.0), "send several requests"),
    no("builtin_tools", Empty, "use /v1/chat/completions"),
    no("chat_template", Never, "the checkpoint's own is used"),
    no("chat_template_kwargs", Empty, "its fields go beside input"),
    no("context_management", Empty, "send the items that count"),
    no("conversation", Never, "send previous_response_id, or the conversation's items"),
    no("documents", Empty, "put them into input"),
    no("format", Empty, "use text.format"),
    no("function_call", Never, "use tool_choice"),
    no("functions", Empty, "use tools"),
    no("ignore_eos", False, "only /v1/completions goes on after the end of an answer"),
    no("image", Never, "answers are texts"),
    no("include_reasoning", True, "reasoning is an item of its own"),
    no("logprobs", False, "use top_logprobs"),
    no("max_completion_tokens", Never, "use max_output_tokens"),
    no("max_tokens", Never, "use max_output_tokens"),
    no("messages", Never, "use input"),
    no("modalities", Only("text"), "answers are texts"),
    no("moderation", Never, "nothing is moderated"),
    no("n", Number(1.0), "send several requests"),
    no("prompt", Never, "send the prompt's text as instructions and input"),
    no("reasoning_effort", Never, "use reasoning.effort"),
    no("response_format", Never, "use text.format"),
    no("stop", Empty, "use /v1/chat/completions"),
    no("stop_token_ids", Empty, "use /v1/chat/completions"),
    no("structured_outputs", Empty, "use text.format"),
    no("think", Never, "use reasoning.effort"),
    no("truncation", Text("disabled"), "send the items that count"),
    no("verbosity", Text("medium"), "say in the instructions how long to answer"),
    no("web_search_options", Never, "declare a function that searches"),
];

/// Refuses what the tables have.
///
/// # Errors
/// 400 for the first field of them that asks for something.
pub fn check(body: &Value, tables: &[&[Refused]]) -> Result<(), ApiError> {
    for Refused { name, neutral, instead } in tables.iter().copied().flatten() {
        if let Some(value) = body.get(name).filter(|value| !value.is_null() && !neutral.is(value)) {
            let message = format!("{name} is {}, which is not supported: {instead}", short(value));
            return Err(ApiError::invalid(name, message).code("unsupported_parameter"));
        }
    }
    Ok(())
}

/// A value for a message, cut where it is long.
pub fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(100) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
