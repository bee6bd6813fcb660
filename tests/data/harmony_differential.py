"""Makes harmony-differential.json: token streams, and what OpenAI's harmony library reads in them.

    pip install openai-harmony==0.0.8
    TIKTOKEN_ENCODINGS_BASE=<directory with o200k_base.tiktoken> python harmony_differential.py

Each case is [primed, tokens, messages]: whether the stream goes on after `<|start|>assistant`, its ids
in o200k_harmony, and the messages of the library's strict parser as [role, channel, recipient, content
type, content], or null where it refuses the stream. The generator is seeded: the same library makes the
same file.
"""

import json
import pathlib
import random

from openai_harmony import HarmonyEncodingName, HarmonyError, Role, StreamableParser, load_harmony_encoding

ENCODING = load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)
HERE = pathlib.Path(__file__).parent
RANDOM = random.Random(20260102)

START, CHANNEL, CONSTRAIN, MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
END, CALL, RETURN, EOT = "<|end|>", "<|call|>", "<|return|>", "<|endoftext|>"
TEXTS = [
    "Hello", "It rains in Tōkyō 🌧.", "", "one\ntwo  three\n", "the token <|end|> ends <|start|>assistant", "{\"a\": 1}",
    "to=functions.f", " leading and trailing ", "ls -R | grep x", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \u200d👩\u200d👩\u200d👧", "final", "a" * 40,
]
ARGUMENTS = ["{}", "{\"a\": \"<|call|>\"}", "{\"city\": \"Tōkyō\", \"n\": [1, 2.5e-7]}", "print('x')\n", "{\"a\": 1", ""]
RECIPIENTS = ["functions.f", "functions.get_weather", "functions.a.b", "python", "browser.search", "container.exec"]
WORDS = [
    "assistant", "user", "system", "developer", "functions.f", "functions.f to=assistant", "analysis", "commentary",
    "final", " to=functions.f", " to=python", " to=assistant", " json", "json", " code", " ", "\n", "??", "fin", "🌧",
    "shell", "functions.shelljson", " to=f", "commentary?",
]

# Headers as real models write them, right and wrong.
HABITS = [
    " to=functions.f<|channel|>commentary to=functions.f json", " to=functions.f<|channel|>commentary to=functions.shell",
    "<|channel|>commentary to=functions.f <|constrain|> json", "<|channel|>final <|constrain|>json", "<|channel|>final json",
    "<|channel|>commentary json", "<|channel|>commentary to=assistant", "<|channel|>final to=user",
    "<|channel|>commentary to=functions.f<|channel|>commentary json", "<|channel|>commentary to=assistant<|channel|>final",
    "<|channel|>analysis<|channel|>commentary to=f", "<|channel|>commentary to=functions.shelljson",
    "<|channel|>commentary functions.f json", "<|channel|>", "", "<|channel|>commentary 2?", "assistant<|channel|>final",
    "<|channel|>commentary to=functions.f.json", "commentary to=functions.f <|constrain|>json", "<|channel|>comment",
]


def special(*texts):
    return [t for text in texts for t in ENCODING.encode(text, allowed_special="all")]


def plain(text):
    return ENCODING.encode(text, disallowed_special=())


def say(channel, text, end):
    return special(CHANNEL) + plain(channel) + special(MESSAGE) + plain(text) + special(end)


def call(end=CALL):
    """A tool call, with its recipient and its content type wherever models and renderers put them."""
    to, channel = plain(" to=" + RANDOM.choice(RECIPIENTS)), RANDOM.choice(["commentary", "commentary", "analysis"])
    kind = RANDOM.choice([[], plain(" json"), plain(" code"), plain(" ") + special(CONSTRAIN) + plain("json"),
                          special(CONSTRAIN) + plain("json")])
    channel = special(CHANNEL) + plain(channel)
    header = to + channel if RANDOM.random() < 0.4 else channel + to
    return header + kind + special(MESSAGE) + plain(RANDOM.choice(ARGUMENTS)) + special(end)


def turn():
    """A well-formed turn after `<|start|>assistant`."""
    parts = [say("analysis", RANDOM.choice(TEXTS), END) for _ in range(RANDOM.choice([0, 1, 1, 2]))]
    if RANDOM.random() < 0.5:
        parts += [say("commentary", RANDOM.choice(TEXTS), END)] * RANDOM.choice([0, 1]) + [call()]
    else:
        text = RANDOM.choice(TEXTS)
        parts += [say("final", text, RETURN) if text else special(CHANNEL) + plain("final") + special(MESSAGE)]
    tokens = list(parts[0])
    for part in parts[1:]:
        tokens += special(START) + plain("assistant") + part
    return tokens[:RANDOM.randrange(len(tokens))] if RANDOM.random() < 0.1 else tokens


def transcript():
    """Messages of every role, each with its `<|start|>`."""
    tokens = special("<|startoftext|>") * (RANDOM.random() < 0.05)
    for role in ["system", "developer", "user", "assistant", "functions.f to=assistant", "assistant", "user"]:
        if RANDOM.random() < 0.3:
            continue
        tokens += special(START) + plain(role)
        if role == "assistant":
            tokens += RANDOM.choice([call, lambda: say("analysis", RANDOM.choice(TEXTS), END),
                                     lambda: say("final", RANDOM.choice(TEXTS), RANDOM.choice([END, RETURN]))])()
        elif "to=" in role:
            tokens += say("commentary", RANDOM.choice(TEXTS), END)
        else:
            tokens += special(MESSAGE) + plain(RANDOM.choice(TEXTS)) + special(END)
    return tokens


def anything():
    """A header's word, a marker, or a byte that is no character by itself."""
    if RANDOM.random() < 0.1:
        return [RANDOM.choice([t for t in range(256) if ENCODING.decode([t]) == "\ufffd"])]
    markers = [START, CHANNEL, CONSTRAIN, MESSAGE, END, CALL, RETURN, EOT, "<|reserved_200000|>"]
    return special(RANDOM.choice(markers)) if RANDOM.random() < 0.5 else plain(RANDOM.choice(WORDS))


def mutation(tokens):
    tokens = list(tokens)
    for _ in range(RANDOM.randint(1, 3)):
        at = RANDOM.randrange(len(tokens) + 1)
        if RANDOM.random() < 0.6:
            # Most of what goes wrong goes wrong about the markers.
            at = RANDOM.choice([i for i, t in enumerate(tokens) if t >= 199998] or [at]) + RANDOM.choice([0, 1])
        action = RANDOM.randrange(5)
        if action == 0:
            tokens[at:at + 1] = []
        elif action == 1:
            tokens[at:at] = tokens[at:at + RANDOM.choice([1, 2, 5])]
        elif action == 2:
            tokens[at:at + 2] = reversed(tokens[at:at + 2])
        elif action == 3:
            tokens[at:at + 1] = anything()
        else:
            tokens[at:at] = anything()
    return tokens


def habit():
    """A turn whose last header is one of the habits."""
    tokens = say("analysis", RANDOM.choice(TEXTS), END) + special(START) + plain("assistant") if RANDOM.random() < 0.5 else []
    header = special(RANDOM.choice(HABITS), MESSAGE)
    return tokens + header + plain(RANDOM.choice(TEXTS + ARGUMENTS)) + special(RANDOM.choice([END, CALL, RETURN]))


def interleaving():
    """Mostly a message's parts in order, so that the library accepts some."""
    if RANDOM.random() < 0.5:
        return [t for _ in range(RANDOM.randint(1, 12)) for t in anything()]
    tokens = []
    for _ in range(RANDOM.randint(1, 3)):
        tokens += special(START) + plain("assistant") if tokens else []
        for _ in range(RANDOM.randint(1, 4)):
            tokens += special(CHANNEL) * (RANDOM.random() < 0.3) + plain(RANDOM.choice(WORDS))
        tokens += special(MESSAGE) + anything() + plain(RANDOM.choice(TEXTS)) + anything() + special(RANDOM.choice([END, CALL, RETURN]))
    return tokens


def read(primed, tokens):
    """The library's messages, null where it refuses."""
    parser = StreamableParser(ENCODING, Role.ASSISTANT if primed else None)
    try:
        for token in tokens:
            parser.process(token)
        parser.process_eos()
    except HarmonyError:
        return None
    messages = []
    for message in (m.to_dict() for m in parser.messages):
        content = "".join(part["text"] for part in message["content"]) if isinstance(message["content"], list) else message["content"]
        messages.append([message.get("name") or message["role"], message.get("channel"), message.get("recipient"),
                         message.get("content_type"), content])
    return messages


def main():
    streams = [(True, turn()) for _ in range(250)] + [(False, transcript()) for _ in range(100)]
    streams += [(True, mutation(turn())) for _ in range(800)] + [(False, mutation(transcript())) for _ in range(250)]
    streams += [(True, habit()) for _ in range(150)]
    streams += [(RANDOM.random() < 0.8, interleaving()) for _ in range(600)]
    distinct = dict.fromkeys((primed, tuple(tokens)) for primed, tokens in streams)
    cases = [[int(primed), tokens, read(primed, tokens)] for primed, tokens in distinct]
    lines = ",\n".join(json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in cases)
    (HERE / "harmony-differential.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(f"{len(cases)} streams, {sum(m is not None for _, _, m in cases)} accepted")


if __name__ == "__main__":
    main()
