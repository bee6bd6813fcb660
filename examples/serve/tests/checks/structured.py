"""Tools, and answers that follow a schema."""

import json

import openai
from pydantic import BaseModel

from . import FRANCE, PARIS, Server, check
from .chat import joined

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
NUMBERS = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    "required": ["a", "b"],
}


def function(name, description, parameters):
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


WEATHER = function("get_weather", "The weather in a city.", CITY)
ADD = function("add", "The sum of two numbers.", NUMBERS)
ROME = {"role": "user", "content": "What is the weather in Rome?"}
SUM = {"role": "user", "content": "What is 17 + 25? Answer in JSON."}


class Number(BaseModel):
    answer: int


class GetWeather(BaseModel):
    """The weather in a city."""

    city: str


@check
def a_tool_is_called_and_its_result_answered(server: Server):
    messages = [ROME]
    first = server.chat(messages, tools=[WEATHER, ADD]).choices[0]
    [call] = first.message.tool_calls
    assert first.finish_reason == "tool_calls" and call.type == "function" and call.id, first
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Rome"}), call
    result = '{"temperature":16,"sky":"clear"}'
    messages += [first.message.to_dict(), {"role": "tool", "tool_call_id": call.id, "content": result}]
    second = server.chat(messages, tools=[WEATHER, ADD]).choices[0]
    assert (second.message.content, second.finish_reason) == ("It is 16 degrees and clear in Rome.", "stop"), second


@check
def a_tool_call_is_streamed_in_pieces_that_fit(server: Server):
    question = {"role": "user", "content": "What is 17 + 25?"}
    chunks = list(server.chat(question, tools=[WEATHER, ADD], stream=True))
    heard = joined(chunks)
    [call] = heard["calls"].values()
    assert heard["finish"] == "tool_calls" and call["name"] == "add" and call["id"], heard
    assert json.loads(call["arguments"]) == {"a": 17, "b": 25}, call
    pieces = [c for chunk in chunks for choice in chunk.choices for c in choice.delta.tool_calls or []]
    assert len(pieces) > 2 and all(piece.index == 0 for piece in pieces), pieces
    with server.client.chat.completions.stream(
        model=server.model, messages=[question], tools=[WEATHER, ADD], temperature=0
    ) as stream:
        [final] = stream.get_final_completion().choices[0].message.tool_calls
    assert json.loads(final.function.arguments) == {"a": 17, "b": 25}, final


@check
def calls_of_the_clients_pydantic_tools_are_parsed(server: Server):
    tool = openai.pydantic_function_tool(GetWeather, name="get_weather", description="The weather in a city.")
    answer = server.client.chat.completions.parse(model=server.model, messages=[ROME], tools=[tool], temperature=0)
    [call] = answer.choices[0].message.tool_calls
    assert call.function.parsed_arguments == GetWeather(city="Rome"), call


@check
def a_tool_choice_is_obeyed(server: Server):
    hello = {"role": "user", "content": "Hello"}
    named = {"type": "function", "function": {"name": "add"}}
    for choice, expected in (("required", ("get_weather", "add")), (named, ("add",))):
        message = server.chat(hello, tools=[WEATHER, ADD], tool_choice=choice, max_tokens=400).choices[0].message
        assert message.tool_calls and message.tool_calls[0].function.name in expected, (choice, message)
        json.loads(message.tool_calls[0].function.arguments)
    message = server.chat(ROME, tools=[WEATHER], tool_choice="none").choices[0].message
    assert not message.tool_calls, message
    assert not server.chat(FRANCE, tools=[WEATHER]).choices[0].message.tool_calls


@check
def an_answer_is_a_value_of_a_pydantic_type(server: Server):
    asked = {"model": server.model, "messages": [SUM], "temperature": 0, "response_format": Number}
    answer = server.client.chat.completions.parse(**asked)
    assert answer.choices[0].message.parsed == Number(answer=42), answer
    assert json.loads(answer.choices[0].message.content) == {"answer": 42}, answer
    with server.client.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == Number(answer=42), final


@check
def any_json_will_do_where_no_schema_is_given(server: Server):
    answer = server.chat(SUM, response_format={"type": "json_object"}).choices[0]
    assert json.loads(answer.message.content)["answer"] == 42, answer


@check
def a_schema_that_is_broken_ends_only_its_own_request(server: Server):
    """https://github.com/vllm-project/vllm/pull/47312: one such schema must not end the engine."""
    for schema in ({"type": "strin"}, {"type": "object", "properties": 5}, {"$ref": "#/nowhere"}):
        form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
        with server.endless() as running:
            next(iter(running))
            try:
                server.chat(SUM, response_format=form)
                raise AssertionError(f"{schema} was taken")
            except openai.BadRequestError as error:
                assert error.type == "invalid_request_error" and error.message, error.body
            assert sum(1 for _, _ in zip(range(20), running)) == 20, "the one beside it goes on"
    assert server.chat(FRANCE).choices[0].message.content == PARIS
