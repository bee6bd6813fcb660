"""/v1/completions: text or tokens in, tokens out, no template between."""

import openai

from . import PARIS, Server, check

# "The" and its neighbours, whatever they are: a prompt of tokens needs no text.
TOKENS = list(range(300, 340))


def complete(server, prompt, **fields):
    fields = {"temperature": 0, "max_tokens": 16, "model": server.model, **fields}
    return server.client.completions.create(prompt=prompt, **fields)


@check
def a_text_is_completed(server: Server):
    start = PARIS.removesuffix(" Paris.")
    prompt = f"<|start|>user<|message|>What is the capital of France?<|end|><|start|>assistant<|channel|>final<|message|>{start}"
    answer = complete(server, prompt)
    [choice], usage = answer.choices, answer.usage
    assert choice.text.startswith(" Paris.") and answer.object == "text_completion", answer
    assert usage.completion_tokens <= 16 and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage
    streamed = list(complete(server, prompt, stream=True, stream_options={"include_usage": True}))
    assert "".join(choice.text for chunk in streamed for choice in chunk.choices) == choice.text
    assert streamed[-1].usage.completion_tokens == usage.completion_tokens, streamed[-1]
    [finish] = [c.finish_reason for chunk in streamed for c in chunk.choices if c.finish_reason]
    assert finish == choice.finish_reason, (finish, choice)


@check
def tokens_are_taken_as_they_are_and_counted(server: Server):
    exact = {"max_tokens": 40, "extra_body": {"ignore_eos": True}}
    answer = complete(server, TOKENS, **exact)
    assert answer.usage.prompt_tokens == len(TOKENS) and answer.usage.completion_tokens == 40, answer.usage
    assert answer.choices[0].finish_reason == "length", answer
    again = complete(server, TOKENS, **exact)
    assert again.choices[0].text == answer.choices[0].text


@check
def several_choices_of_a_completion_differ_by_their_seeds(server: Server):
    asked = {"temperature": 1.0, "seed": 5}
    three = complete(server, TOKENS, n=3, **asked)
    for choice in three.choices:
        alone = complete(server, TOKENS, **{**asked, "seed": 5 + choice.index})
        assert alone.choices[0].text == choice.text, (choice, alone)


@check
def what_completions_cannot_do_is_refused_by_name(server: Server):
    for field in ({"suffix": "x"}, {"best_of": 3}):
        try:
            complete(server, TOKENS, **field)
            raise AssertionError(f"{field} was taken")
        except openai.BadRequestError as error:
            assert next(iter(field)) in error.message, error.message
