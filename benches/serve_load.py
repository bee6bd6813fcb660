"""How fast a server answers many at once, and how long others wait meanwhile: any server with /v1/completions.

usage: python3 benches/serve_load.py URL [--key KEY] [--json FILE] [--only throughput|latency] ...

Throughput: tokens per second of 1, 8 and 32 answers that begin together. Latency: the time to the first token of prompts
that arrive one by one, at random times but at half the rate at which the server reads a prompt alone, beside answers that
run all the while; and the longest that one of these had to wait for its next token. Prompts are random token ids, each
its own, so that nothing can come from a cache; answers have a fixed length (`ignore_eos`). Python's own library suffices.
The load is bounded: so many requests, and none is waited for longer than --timeout.
"""

import argparse
import asyncio
import json
import random
import sys
import time
import urllib.parse


class Load:
    def __init__(self, options):
        self.options = options
        url = urllib.parse.urlsplit(options.url)
        self.host, self.port = url.hostname, url.port or 80
        self.random = random.Random(options.seed)

    def prompt(self, count):
        return [self.random.randrange(300, self.options.vocab) for _ in range(count)]

    async def events(self, prompt, tokens):
        """Streams an answer: yields the time of every event that has text, and returns once all is told."""
        body = {
            "prompt": prompt,
            "max_tokens": tokens,
            "stream": True,
            "ignore_eos": True,
            "cache_prompt": False,
            "temperature": 1.0,
            "seed": len(prompt),
            "stream_options": {"include_usage": True},
        }
        if self.options.model:
            body["model"] = self.options.model
        text = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: application/json\r\n"
        head += f"Authorization: Bearer {self.options.key}\r\nConnection: close\r\nContent-Length: {len(text)}\r\n\r\n"
        reader, writer = await asyncio.open_connection(self.host, self.port, limit=1 << 22)
        try:
            writer.write(head.encode() + text)
            await writer.drain()
            status = await reader.readline()
            headers = {}
            while (line := await reader.readline()).strip():
                name, _, value = line.decode().partition(":")
                headers[name.lower()] = value.strip()
            if b" 200 " not in status:
                raise RuntimeError(f"{status.decode().strip()}: {(await reader.read()).decode(errors='replace')[:500]}")
            async for event in sent(reader, "chunked" in headers.get("transfer-encoding", "")):
                if event == "[DONE]":
                    continue
                event = json.loads(event)
                if "error" in event:
                    raise RuntimeError(f"the answer ended with {event['error']}")
                yield time.perf_counter(), event
        finally:
            writer.close()

    async def answer(self, prompt, tokens):
        """One answer as `Answered`, from the moment it was asked for."""
        answered = Answered()
        async with asyncio.timeout(self.options.timeout):
            async for at, event in self.events(prompt, tokens):
                answered.take(at, event)
        if answered.completion_tokens != tokens or answered.prompt_tokens not in (len(prompt), None):
            raise RuntimeError(
                f"asked for {tokens} tokens after {len(prompt)}, got {answered.completion_tokens} after "
                f"{answered.prompt_tokens}: the server ignores prompts of token ids, or ignore_eos"
            )
        return answered

    async def throughput(self, count):
        """Tokens per second of `count` answers."""
        options = self.options
        begun = time.perf_counter()
        answers = [self.answer(self.prompt(options.short), options.tokens) for _ in range(count)]
        answers = await asyncio.gather(*answers)
        seconds = time.perf_counter() - begun
        first = max(answer.first for answer in answers) - begun
        return {
            "answers": count,
            "tokens_per_second": count * options.tokens / seconds,
            "seconds": seconds,
            "last_first_token": first,
            "longest_gap": max(answer.longest_gap() for answer in answers),
        }

    async def latency(self):
        """Prompts that arrive beside running answers."""
        options = self.options
        alone = [await self.answer(self.prompt(options.long), 1) for _ in range(2)]
        rate = options.long / min(answer.first - answer.asked for answer in alone)
        gap = options.long / rate * 2 if options.arrivals is None else 1 / options.arrivals
        running = [Running(self) for _ in range(options.running)]
        tasks = [asyncio.create_task(one.go()) for one in running]
        # A prompt begins a phase of its own for every running answer: what is before that does not count.
        while not all(one.tokens > 2 for one in running):
            for task in tasks:
                if task.done():
                    await task
            await asyncio.sleep(0.05)
        begun = time.perf_counter()
        arrivals, at = [], 0.0
        for _ in range(options.prompts):
            arrivals.append(at)
            at += self.random.expovariate(1 / gap)

        async def arrive(at):
            await asyncio.sleep(begun + at - time.perf_counter())
            answered = await self.answer(self.prompt(options.long), options.after)
            return answered.first - answered.asked

        try:
            waits = await asyncio.gather(*(arrive(at) for at in arrivals))
            ended = time.perf_counter()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        gaps = [gap for one in running for gap in one.gaps(begun, ended)]
        waits.sort()
        return {
            "prompt_tokens_per_second_alone": rate,
            "prompts": options.prompts,
            "prompt_tokens": options.long,
            "arrivals_per_second": 1 / gap,
            "running": options.running,
            "seconds": ended - begun,
            "first_token_p50": quantile(waits, 0.5),
            "first_token_p99": quantile(waits, 0.99),
            "first_token": waits,
            "running_tokens_per_second": len(gaps) / (ended - begun),
            "gap_p50": quantile(sorted(gaps), 0.5),
            "gap_p99": quantile(sorted(gaps), 0.99),
            "longest_gap": max(gaps),
        }


class Answered:
    """When the events of an answer came, and how many tokens they were."""

    def __init__(self):
        self.asked, self.first, self.times = time.perf_counter(), None, []
        self.prompt_tokens = self.completion_tokens = None

    def take(self, at, event):
        if usage := event.get("usage"):
            self.prompt_tokens = usage["prompt_tokens"]
            self.completion_tokens = usage["completion_tokens"]
        if event.get("choices") and not event["choices"][0].get("finish_reason"):
            self.first = self.first or at
            self.times.append(at)
        elif event.get("choices"):
            # Of a single token some tell only here.
            self.first = self.first or at

    def longest_gap(self):
        return max((b - a for a, b in zip(self.times, self.times[1:])), default=0.0)


class Running:
    """An answer that goes on: where one is at its end the next begins."""

    def __init__(self, load):
        self.load, self.tokens, self.answers = load, 0, []

    async def go(self):
        while True:
            answered = Answered()
            self.answers.append(answered)
            async for at, event in self.load.events(self.load.prompt(self.load.options.short), 2000):
                answered.take(at, event)
                self.tokens += 1

    def gaps(self, begun, ended):
        """The times between tokens of one answer, from `begun` to `ended`, the one that `ended` cuts too."""
        gaps = []
        for answer in self.answers:
            gaps += [b - a for a, b in zip(answer.times, answer.times[1:]) if b > begun and a < ended]
        if self.answers[-1].times and ended > self.answers[-1].times[-1]:
            gaps.append(ended - self.answers[-1].times[-1])
        return gaps


async def sent(reader, chunked):
    """The data of server-sent events."""
    rest = b""
    while True:
        if chunked:
            size = int((await reader.readline()).split(b";")[0] or b"0", 16)
            piece = await reader.readexactly(size)
            await reader.readline()
        else:
            piece = await reader.read(1 << 16)
        rest += piece
        *lines, rest = rest.split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip().decode()
        if not piece:
            return


def quantile(ordered, share):
    """The value that `share` of them do not exceed."""
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


async def main(options):
    load = Load(options)
    result = {"url": options.url}
    await load.answer(load.prompt(options.short), 4)
    if options.only != "latency":
        result["throughput"] = []
        print(f"| answers of {options.tokens} tokens at once | tokens/s | ratio | longest gap, s |\n|---|---|---|---|")
        for count in options.counts:
            one = await load.throughput(count)
            result["throughput"].append(one)
            ratio = one["tokens_per_second"] / result["throughput"][0]["tokens_per_second"]
            print(f"| {count} | {one['tokens_per_second']:.1f} | {ratio:.2f} | {one['longest_gap']:.2f} |", flush=True)
    if options.only != "throughput":
        one = result["latency"] = await load.latency()
        print(
            f"\n{one['prompts']} prompts of {one['prompt_tokens']} tokens, one every {1 / one['arrivals_per_second']:.1f} s, "
            f"beside {one['running']} answers; a prompt alone is read at {one['prompt_tokens_per_second_alone']:.0f} tokens/s\n"
            "| first token p50, s | p99, s | running answers, tokens/s | gap p50, s | p99, s | longest, s |\n"
            "|---|---|---|---|---|---|\n"
            f"| {one['first_token_p50']:.2f} | {one['first_token_p99']:.2f} | {one['running_tokens_per_second']:.1f} "
            f"| {one['gap_p50']:.3f} | {one['gap_p99']:.2f} | {one['longest_gap']:.2f} |",
            flush=True,
        )
    if options.json:
        with open(options.json, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("url", help="of the server, as http://127.0.0.1:8000")
    parser.add_argument("--key", default="none", help="API key")
    parser.add_argument("--model", help="name to send, where the server wants one")
    parser.add_argument("--json", help="write the figures there, as JSON")
    parser.add_argument("--only", choices=("throughput", "latency"))
    parser.add_argument("--counts", type=lambda text: [int(n) for n in text.split(",")], default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=64, help="of an answer whose throughput is measured")
    parser.add_argument("--short", type=int, default=8, help="tokens of their prompts")
    parser.add_argument("--prompts", type=int, default=20, help="that arrive beside running answers")
    parser.add_argument("--long", type=int, default=3000, help="tokens of these prompts")
    parser.add_argument("--after", type=int, default=8, help="tokens of their answers")
    parser.add_argument("--running", type=int, default=8, help="answers that run meanwhile")
    parser.add_argument("--arrivals", type=float, help="prompts per second, instead of half of what it can read")
    parser.add_argument("--vocab", type=int, default=199_000, help="token ids are below")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=1800, help="seconds, of one answer")
    try:
        asyncio.run(main(parser.parse_args()))
    except (RuntimeError, OSError, TimeoutError) as error:
        sys.exit(f"serve_load: {error or type(error).__name__}")
