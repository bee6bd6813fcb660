//! [`ChatSession::run_tools`]: call, result, answer, until the model needs no more tools.

use super::{ChatEvent, ChatResponse, ChatSession};
use crate::generation::{CancelHandle, FinishReason};
use crate::harmony::{BuiltinTool, Item, Message, ToolCall, ToolChoice, ToolKind};
use crate::{Error, ErrorKind, Result};
use std::fmt::{self, Display};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How [`ChatSession::run_tools`] goes about it.
pub struct ToolLoop<'a> {
    max_rounds: usize,
    errors: ToolErrors,
    on_event: Box<dyn FnMut(&ChatEvent) + 'a>,
    cancel: ToolLoopHandle,
}

/// What happens when a tool fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ToolErrors {
    /// The model is told, as the tool's output `error: ...`, and can try again.
    #[default]
    Tell,
    /// The run ends with an error of kind [`ErrorKind::Tool`], whose source is the tool's own. The call
    /// stays unanswered: another run begins with it.
    Abort,
}

/// Ends a run of tools from another thread.
#[derive(Clone, Debug, Default)]
pub struct ToolLoopHandle(Arc<Mutex<Cancel>>);

#[derive(Debug, Default)]
struct Cancel {
    cancelled: bool,
    /// The answer that is being made.
    answer: Option<CancelHandle>,
}

impl ToolLoopHandle {
    /// Asks the run to end: an answer stops before the model's next step, a tool that is running
    /// finishes first. The run then returns with [`FinishReason::Cancelled`].
    pub fn cancel(&self) {
        let mut state = self.lock();
        state.cancelled = true;
        state.answer.iter().for_each(CancelHandle::cancel);
    }

    /// True once [`ToolLoopHandle::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.lock().cancelled
    }

    /// Under the lock, so that no answer slips past a cancellation.
    fn begin(&self, answer: CancelHandle) {
        let mut state = self.lock();
        if state.cancelled {
            answer.cancel();
        }
        state.answer = Some(answer);
    }

    /// Each change is a single store, so a panic elsewhere leaves nothing half done.
    fn lock(&self) -> MutexGuard<'_, Cancel> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for ToolLoop<'_> {
    fn default() -> Self {
        ToolLoop {
            max_rounds: ToolLoop::MAX_ROUNDS,
            errors: ToolErrors::default(),
            on_event: Box::new(|_| {}),
            cancel: ToolLoopHandle::default(),
        }
    }
}

impl<'a> ToolLoop<'a> {
    /// The default of [`ToolLoop::max_rounds`].
    pub const MAX_ROUNDS: usize = 16;

    /// Most answers to ask the model for, the last one included; at least 1.
    pub fn max_rounds(self, max_rounds: usize) -> Self {
        Self { max_rounds, ..self }
    }

    /// What happens when a tool fails.
    pub fn errors(self, errors: ToolErrors) -> Self {
        Self { errors, ..self }
    }

    /// Sees every event of every answer. Each answer has a [`ChatEvent::Finish`] and counts its calls
    /// from 0; the ids of calls are different throughout.
    pub fn on_event(self, on_event: impl FnMut(&ChatEvent) + 'a) -> Self {
        Self { on_event: Box::new(on_event), ..self }
    }

    /// A handle that ends the run from any thread.
    pub fn cancel_handle(&self) -> ToolLoopHandle {
        self.cancel.clone()
    }
}

impl fmt::Debug for ToolLoop<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ToolLoop")
            .field("max_rounds", &self.max_rounds)
            .field("errors", &self.errors)
            .finish_non_exhaustive()
    }
}

impl ChatSession {
    /// Answers the conversation as it is, running `tool` for every call the model makes on the way, and
    /// returns the last answer. Calls, results and answers become part of the conversation.
    ///
    /// A run begins with the calls at the end of the conversation that have no result yet, so one that
    /// ended early can be taken up again. Several calls in one answer are run in order. A call of a
    /// tool that is not on offer is not run: the model is told which ones are. Neither is one that was
    /// cut off: the run ends there, with [`FinishReason::Length`].
    ///
    /// A [`crate::harmony::ToolChoice`] that requires a call requires the first answer to be one; from
    /// the next on the model decides.
    ///
    /// The last answer's `finish_reason` is [`FinishReason::ToolCalls`] when the model still called
    /// tools in the last of [`ToolLoop::max_rounds`] answers; those calls were not run.
    ///
    /// ```no_run
    /// use gpt_oss_puzzle::chat::{ChatRequest, Model, ToolLoop};
    /// use gpt_oss_puzzle::harmony::{Message, Tool, ToolCall};
    /// use gpt_oss_puzzle::Error;
    ///
    /// let tool = Tool::new("roll", "Rolls a die.", serde_json::json!({
    ///     "type": "object", "properties": {"sides": {"type": "integer"}}, "required": ["sides"],
    /// }));
    /// let model = Model::load("gpt-oss-20b")?;
    /// let mut session = model.session(ChatRequest::default().tools([tool]));
    /// session.push(Message::user("Roll two dice of 20 sides"));
    /// let answer = session.run_tools(ToolLoop::default(), |call: &ToolCall| {
    ///     let arguments: serde_json::Value = call.parse()?;
    ///     Ok::<_, Error>(arguments["sides"].clone())
    /// })?;
    /// println!("{}", answer.text());
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`ChatSession::respond`] and what its stream yields; `Tool` with [`ToolErrors::Abort`];
    /// `InvalidRequest` for no rounds.
    pub fn run_tools<O, E>(
        &mut self,
        options: ToolLoop<'_>,
        tool: impl FnMut(&ToolCall) -> Result<O, E>,
    ) -> Result<ChatResponse>
    where
        O: Display,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let choice = self.request().tool_choice.clone();
        let response = self.run_rounds(options, tool);
        self.request_mut().tool_choice = choice;
        response
    }

    fn run_rounds<O, E>(
        &mut self,
        mut options: ToolLoop<'_>,
        mut tool: impl FnMut(&ToolCall) -> Result<O, E>,
    ) -> Result<ChatResponse>
    where
        O: Display,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if options.max_rounds == 0 {
            return Err(Error::invalid_request("max_rounds is 0, expected at least 1"));
        }
        let mut round = 1;
        loop {
            for call in self.unanswered_calls() {
                if options.cancel.is_cancelled() {
                    break;
                }
                let output = match self.refusal(&call) {
                    Some(refusal) => refusal,
                    None => options.errors.output(&call, tool(&call).map_err(Into::into))?,
                };
                self.push(Message::tool(&call, output));
            }
            let mut stream = self.respond()?;
            options.cancel.begin(stream.cancel_handle());
            for event in stream.by_ref() {
                (options.on_event)(&event?);
            }
            let response = stream.finish()?;
            if response.finish_reason != FinishReason::ToolCalls || round == options.max_rounds {
                return Ok(response);
            }
            if self.request().tool_choice != ToolChoice::None {
                self.request_mut().tool_choice = ToolChoice::Auto;
            }
            round += 1;
        }
    }

    /// The calls at the end of the conversation that have no result yet.
    fn unanswered_calls(&self) -> Vec<ToolCall> {
        let messages = self.messages();
        let last = messages.iter().rposition(|m| !matches!(m, Message::Tool(_)));
        let Some((Message::Assistant(answer), results)) =
            last.and_then(|i| messages[i..].split_first())
        else {
            return Vec::new();
        };
        if !matches!(answer.items.last(), Some(Item::ToolCall(_))) {
            return Vec::new();
        }
        let is_answered = |call: &ToolCall| {
            results.iter().any(|result| match result {
                Message::Tool(output) => match &output.call_id {
                    Some(id) => *id == call.id,
                    None => output.name == call.name,
                },
                _ => false,
            })
        };
        answer.tool_calls().filter(|call| !call.incomplete && !is_answered(call)).cloned().collect()
    }

    /// What the model is told when it calls a tool that is not on offer.
    fn refusal(&self, call: &ToolCall) -> Option<String> {
        let (tools, builtin) = self.request().offered();
        let is_offered = match call.kind {
            ToolKind::Function => tools.iter().any(|tool| tool.name == call.name),
            ToolKind::Builtin => BuiltinTool::of(&call.name).is_some_and(|t| builtin.contains(&t)),
        };
        if is_offered {
            return None;
        }
        let names: Vec<String> =
            (tools.iter().map(|tool| ToolKind::Function.recipient(&tool.name)))
                .chain(builtin.iter().map(|tool| tool.namespace().to_owned()))
                .collect();
        Some(match names.as_slice() {
            [] => format!("error: there is no tool {}, and no other", call.recipient()),
            names => {
                format!("error: there is no tool {}, only {}", call.recipient(), names.join(", "))
            }
        })
    }
}

impl ToolErrors {
    /// What the model is told of a tool's result.
    fn output<O: Display>(
        self,
        call: &ToolCall,
        result: Result<O, Box<dyn std::error::Error + Send + Sync>>,
    ) -> Result<String> {
        match (result, self) {
            (Ok(output), _) => Ok(output.to_string()),
            (Err(error), ToolErrors::Tell) => Ok(format!("error: {error}")),
            (Err(error), ToolErrors::Abort) => {
                let message = format!("tool {} failed: {error}", call.name);
                Err(Error::new(ErrorKind::Tool, message).with_source(error))
            }
        }
    }
}
