"""/v1/responses, which the client's newer helpers call."""

import json

import openai

from . import FRANCE, PARIS, Server, capital_of, check
from .structured import ADD, ROME, SUM, WEATHER, Number

QUESTION = FRANCE["content"]


def flat(tool):
    """A tool as this API has it: without the layer `function`."""
    return {"type": "function", "strict": False, **tool["function"]}


def respond(server, asked, **fields):
    fields = {"temperature": 0, "model": server.model, **fields}
    return server.client.responses.create(input=asked, **fields)


def checked(events):
    """The order that every stream of this API keeps: whoever shows it relies on that.
    https://github.com/Oaklight/llm-rosetta/issues/56: without the events of items nothing is shown."""
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"], kinds[:3]
    assert kinds[-1] in ("response.completed", "response.incomplete"), kinds[-1]
    assert [event.sequence_number for event in events] == list(range(len(events))), "numbers without a gap"
    final = events[-1].response
    assert len({e.response.id for e in events if hasattr(e, "response")}) == 1
    items = {}
    for event in events[2:-1]:
        kind = event.type.removeprefix("response.")
        index = event.output_index
        if kind == "output_item.added":
            assert index == len(items), (index, items)
            items[index] = {"id": event.item.id, "deltas": "", "done": None, "parts": 0}
            continue
        item = items[index]
        assert item["done"] is None, f"{event.type} after its item was done"
        if kind == "output_item.done":
            item["done"] = event.item
            assert event.item.id == item["id"], (event, item)
            assert item["parts"] == 0, "every part that was added is done"
        else:
            assert event.item_id == item["id"], (event, item)
            item["parts"] += {"content_part.added": 1, "content_part.done": -1}.get(kind, 0)
            if kind.endswith(".delta"):
                item["deltas"] += event.delta
            elif kind.endswith(("text.done", "arguments.done")):
                whole = event.arguments if kind.endswith("arguments.done") else event.text
                assert whole == item["deltas"], (event, item)
    done = [items[index]["done"] for index in sorted(items)]
    assert [item.to_dict() for item in done] == [item.to_dict() for item in final.output], (done, final.output)
    return final, items


@check
def a_response_has_its_reasoning_and_its_text(server: Server):
    answer = respond(server, QUESTION)
    assert answer.output_text == PARIS and answer.status == "completed" and answer.object == "response", answer
    assert [item.type for item in answer.output] == ["reasoning", "message"], answer.output
    reasoning, message = answer.output
    assert "France" in reasoning.content[0].text and message.role == "assistant", answer.output
    assert message.content[0].annotations == [], message
    usage = answer.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens > 50, usage
    assert 0 < usage.output_tokens_details.reasoning_tokens < usage.output_tokens, usage
    assert usage.input_tokens_details.cached_tokens <= usage.input_tokens, usage
    # What the client expects of the object, all of it.
    type(answer).model_validate(answer.to_dict())


@check
def instructions_and_messages_are_read(server: Server):
    parts = [{"role": "user", "content": [{"type": "input_text", "text": "What is the capital of Spain?"}]}]
    assert "Madrid" in respond(server, parts, instructions="Answer.").output_text


@check
def a_response_is_streamed_item_by_item(server: Server):
    events = list(respond(server, QUESTION, stream=True))
    final, items = checked(events)
    assert final.output_text == PARIS and final.status == "completed", final
    assert items[0]["deltas"] == final.output[0].content[0].text, "reasoning is streamed too"
    assert items[1]["deltas"] == PARIS
    assert sum(event.type == "response.output_text.delta" for event in events) > 3, "text comes in pieces"
    for event in events:
        type(event).model_validate(event.to_dict())


@check
def the_clients_own_helper_takes_the_response(server: Server):
    with server.client.responses.stream(model=server.model, input=QUESTION, temperature=0) as stream:
        heard = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert heard == final.output_text == PARIS, (heard, final)


@check
def a_response_calls_a_tool_and_goes_on_with_its_result(server: Server):
    tools = [flat(WEATHER), flat(ADD)]
    events = list(respond(server, [ROME], tools=tools, stream=True))
    first, items = checked(events)
    call = first.output[-1]
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "get_weather", {"city": "Rome"})
    assert call.call_id and items[len(items) - 1]["deltas"] == call.arguments, items
    result = {"type": "function_call_output", "call_id": call.call_id, "output": '{"temperature":16,"sky":"clear"}'}
    # The client keeps the conversation: all items go back, chain of thought too.
    history = [ROME, *(item.to_dict() for item in first.output), result]
    assert respond(server, history, tools=tools).output_text == "It is 16 degrees and clear in Rome."
    with server.client.responses.stream(model=server.model, input=[ROME], tools=tools, temperature=0) as stream:
        assert stream.get_final_response().output[-1].arguments == call.arguments


@check
def the_server_keeps_a_conversation_if_told_to(server: Server):
    first = respond(server, QUESTION, store=True)
    assert server.client.responses.retrieve(first.id).output_text == PARIS
    second = respond(server, "What is the capital of Spain?", previous_response_id=first.id)
    assert "Madrid" in second.output_text and second.usage.input_tokens > first.usage.input_tokens, second
    server.client.responses.delete(first.id)
    for gone in (
        lambda: server.client.responses.retrieve(first.id),
        lambda: respond(server, QUESTION, previous_response_id=first.id),
        lambda: server.client.responses.retrieve(respond(server, QUESTION, store=False).id),
    ):
        try:
            gone()
            raise AssertionError("what was deleted is still there")
        except openai.NotFoundError as error:
            assert error.message, error.body


@check
def a_response_is_a_value_of_a_pydantic_type(server: Server):
    answer = server.client.responses.parse(model=server.model, input=[SUM], temperature=0, text_format=Number)
    assert answer.output_parsed == Number(answer=42), answer
    with server.client.responses.stream(model=server.model, input=[SUM], temperature=0, text_format=Number) as stream:
        assert stream.get_final_response().output_parsed == Number(answer=42)


@check
def a_response_that_is_cut_is_incomplete(server: Server):
    answer = respond(server, QUESTION, max_output_tokens=5)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens"), answer
    final, _ = checked(list(respond(server, QUESTION, max_output_tokens=5, stream=True)))
    assert final.status == "incomplete" and final.usage.output_tokens == 5, final


@check
def effort_and_reasoning_are_told_apart(server: Server):
    low, high = (respond(server, "What is 17 + 25?", reasoning={"effort": effort}) for effort in ("low", "high"))
    assert low.reasoning.effort == "low" and "42" in low.output_text and "42" in high.output_text, (low, high)
    low, high = (answer.usage.output_tokens_details.reasoning_tokens for answer in (low, high))
    assert low < high, (low, high)


@check
def what_responses_cannot_do_is_refused_by_name(server: Server):
    refused = [
        ({"tools": [{"type": "web_search"}]}, "web_search"),
        ({"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}, "code_interpreter"),
        ({"background": True}, "background"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]}, "input_image"),
    ]
    for fields, name in refused:
        try:
            respond(server, fields.pop("input", QUESTION), **fields)
            raise AssertionError(f"{name} was taken")
        except openai.BadRequestError as error:
            assert name in error.message, (name, error.message)


@check
def a_stored_conversation_is_read_from_the_cache(server: Server):
    asked = respond(server, [capital_of("Italy")], store=True)
    for country in ("Japan", "Norway", "Greece"):
        asked = respond(server, [capital_of(country)], store=True, previous_response_id=asked.id)
    usage = asked.usage
    assert usage.input_tokens_details.cached_tokens >= usage.input_tokens - 64 - 60, usage
