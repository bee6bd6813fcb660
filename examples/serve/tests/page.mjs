// The page in a real browser, against a server that runs with the small model.
//
//     npm install playwright-core          (Debian's chromium does for a browser)
//     node page.mjs URL FOLDER [CHROMIUM]
//
// Writes screenshots to FOLDER. The last line is `N passed, N failed`; fails if one did.

import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

// Looked for where the test is run, not where it lies.
const { chromium } = createRequire(join(process.cwd(), "package.json"))("playwright-core");

const [url, folder, executablePath = "/usr/bin/chromium"] = process.argv.slice(2);
if (!folder) {
  console.error("usage: node page.mjs URL FOLDER [CHROMIUM]");
  process.exit(2);
}
mkdirSync(folder, { recursive: true });

const FRANCE = "What is the capital of France?";
const WEATHER = [{
  type: "function",
  function: {
    name: "get_weather",
    description: "The weather in a city.",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
}];
// The tokens that end a message or an answer of the small model: without them it goes on and on.
const ENDS = [1980, 1983, 1987, 1988, 1993];

const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
let passed = 0, failed = 0;

/// Runs a test on a page of its own; whatever the page complains of fails it.
async function test(name, body, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1100, height: 760 }, ...options });
  // The most likely answer, which is the same every time.
  await context.addInitScript(() => {
    sessionStorage.chat ??= JSON.stringify({ settings: { temperature: "0" } });
  });
  const page = await context.newPage();
  page.setDefaultTimeout(20_000);
  const complaints = [];
  page.on("pageerror", (error) => complaints.push(error.message));
  page.on("console", (message) => {
    // The browser itself tells of statuses such as 400.
    if (message.type() === "error" && !/Failed to load resource/.test(message.text())) complaints.push(message.text());
  });
  try {
    await page.goto(url);
    await body(page);
    assert.deepEqual(complaints, []);
    passed += 1;
    console.log(`ok      ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED  ${name}\n${error.stack}`);
    await page.screenshot({ path: join(folder, `failed-${failed}.png`) });
  }
  await context.close();
}

const shot = (page, name) => page.screenshot({ path: join(folder, `${name}.png`) });
const box = (page) => page.getByLabel("Message", { exact: true });
const answers = (page) => page.locator("article.assistant");

async function ask(page, text) {
  await box(page).fill(text);
  await box(page).press("Enter");
}

/// Waits until answer `index` is whole, and returns its text.
async function whole(page, index = 0) {
  const article = answers(page).nth(index);
  await article.and(page.locator(':not([aria-busy="true"])')).waitFor();
  return article.locator(".text").innerText();
}

/// Changes what the page asks of the server.
async function alter(page, change) {
  await page.route("**/v1/chat/completions", async (route) => {
    const body = route.request().postDataJSON();
    await route.continue({ postData: JSON.stringify({ ...body, ...change(body) }) });
  });
}

const endless = (page) => alter(page, () => ({ logit_bias: Object.fromEntries(ENDS.map((id) => [id, -100])) }));

/// Nothing is cut off at the side.
async function fits(page) {
  const widths = () => [document.documentElement, document.querySelector("main")]
    .map((element) => [element.scrollWidth, element.clientWidth]);
  for (const [wanted, given] of await page.evaluate(widths)) assert.ok(wanted <= given, `${wanted} in a width of ${given}`);
}

await test("the page says which model answers", async (page) => {
  await page.locator("h1.ready").waitFor();
  const models = await (await page.request.get(new URL("/v1/models", url).href)).json();
  assert.equal(await page.locator("h1").innerText(), models.data[0].id);
  await page.getByText("What would you like to know?").waitFor();
  await shot(page, "empty");
});

await test("a question is answered, with the thought folded and tokens counted", async (page) => {
  await ask(page, FRANCE);
  assert.match(await whole(page), /Paris/);
  assert.equal(await page.locator("article.user").innerText().then((text) => text.includes(FRANCE)), true);
  const thought = answers(page).locator("details.thought");
  assert.equal(await thought.evaluate((details) => details.open), false);
  assert.equal(await thought.locator("summary").innerText(), "Thought");
  await thought.locator("summary").click();
  assert.match(await thought.locator("div").innerText(), /capital of France/);
  assert.match(await answers(page).locator(".note").innerText(), /^\d+ tokens(, [\d.]+ tokens\/s)?, first after [\d.]+ s$/);
  await shot(page, "answer");
});

await test("an answer streams: what is there is shown before the end", async (page) => {
  await endless(page);
  await ask(page, FRANCE);
  await page.getByRole("button", { name: "Stop" }).waitFor();
  const seen = () => answers(page).evaluate((article) => article.textContent.length);
  const busy = () => answers(page).getAttribute("aria-busy");
  await page.waitForFunction(() => document.querySelector("article.assistant").textContent.length > 40);
  const before = await seen();
  await page.waitForFunction((before) => document.querySelector("article.assistant").textContent.length > before, before);
  assert.equal(await busy(), "true");
  assert.match(await page.getByRole("status").innerText(), /^(Thinking|Answering): about \d+ tokens/);
  await shot(page, "streaming");
});

await test("Stop ends the answer in the page and on the server, and keeps what there is", async (page) => {
  await endless(page);
  await ask(page, FRANCE);
  await page.waitForFunction(() => document.querySelector("article.assistant")?.textContent.length > 100);
  await page.getByRole("button", { name: "Stop" }).click();
  await answers(page).and(page.locator('[aria-busy="false"]')).waitFor();
  assert.match(await answers(page).locator(".note").innerText(), /^stopped · about \d+ tokens/);
  assert.ok(await answers(page).evaluate((article) => article.textContent.length) > 100);
  await page.getByRole("button", { name: "Send" }).waitFor();
  // The server had 4,000 tokens before it.
  const metrics = await page.request.get(new URL("/metrics", url).href);
  if (metrics.ok()) {
    const running = /^[\w:]*running(?:\{[^}]*\})? (\d+)/m;
    await assert.doesNotReject(async () => {
      for (let wait = 0; ; wait += 1) {
        const text = await (await page.request.get(new URL("/metrics", url).href)).text();
        if (running.exec(text)?.[1] === "0") return;
        assert.ok(wait < 20, `it still runs: ${running.exec(text)?.[0]}`);
        await page.waitForTimeout(50);
      }
    });
  }
  await shot(page, "stopped");
  // The page goes on as before.
  await page.unroute("**/v1/chat/completions");
  await page.getByRole("button", { name: "New chat" }).click();
  await ask(page, FRANCE);
  assert.match(await whole(page), /Paris/);
});

await test("Escape stops too", async (page) => {
  await endless(page);
  await ask(page, FRANCE);
  await page.waitForFunction(() => document.querySelector("article.assistant")?.textContent.length > 40);
  await page.keyboard.press("Escape");
  await answers(page).and(page.locator('[aria-busy="false"]')).waitFor();
  assert.match(await answers(page).locator(".note").innerText(), /^stopped/);
});

await test("a second turn is asked with the first, and a reload keeps both", async (page) => {
  await ask(page, FRANCE);
  await whole(page);
  const asked = page.waitForRequest("**/v1/chat/completions");
  await ask(page, "What is the capital of Italy?");
  const { messages } = (await asked).postDataJSON();
  assert.deepEqual(messages.map((message) => message.role), ["user", "assistant", "user"]);
  assert.match(messages[1].content, /Paris/);
  const said = await whole(page, 1);
  await box(page).fill("not sent yet");
  await page.reload();
  assert.equal(await whole(page, 1), said);
  assert.equal(await page.locator("article").count(), 4);
  assert.equal(await box(page).inputValue(), "not sent yet");
  await shot(page, "reloaded");
  await page.getByRole("button", { name: "New chat" }).click();
  assert.equal(await page.locator("article").count(), 0);
  await page.reload();
  assert.equal(await page.locator("article").count(), 0);
});

await test("Enter sends, Shift+Enter begins a new line", async (page) => {
  await box(page).fill("Name the capital");
  await box(page).press("Shift+Enter");
  await box(page).pressSequentially("of France.");
  assert.equal(await page.locator("article").count(), 0);
  assert.equal(await box(page).inputValue(), "Name the capital\nof France.");
  await box(page).press("Enter");
  await whole(page);
  assert.equal(await box(page).inputValue(), "");
});

await test("the effort that was chosen is asked for", async (page) => {
  await page.getByLabel("Effort").selectOption("high");
  const asked = page.waitForRequest("**/v1/chat/completions");
  await ask(page, "What is 27 plus 48?");
  assert.equal((await asked).postDataJSON().reasoning_effort, "high");
  await whole(page);
});

await test("an error of the server is shown, and can be tried again", async (page) => {
  await page.getByRole("button", { name: "Settings" }).click();
  await page.getByLabel("Temperature").fill("-1");
  await ask(page, FRANCE);
  const alert = page.getByRole("alert");
  assert.match(await alert.innerText(), /temperature/);
  await shot(page, "error");
  await page.getByLabel("Temperature").fill("0");
  await page.getByRole("button", { name: "Try again" }).click();
  assert.match(await whole(page), /Paris/);
  assert.equal(await alert.count(), 0);
});

await test("a server that is gone is said to be", async (page) => {
  await page.locator("h1.ready").waitFor();
  await page.route("**/v1/chat/completions", (route) => route.abort());
  await ask(page, FRANCE);
  assert.match(await page.getByRole("alert").innerText(), /cannot be reached/);
});

await test("an error in the middle of an answer is shown, and what came before it stays", async (page) => {
  const body = `data: ${JSON.stringify({ choices: [{ index: 0, delta: { content: "The capital" } }] })}\n\n`
    + `data: ${JSON.stringify({ error: { message: "the device was lost", type: "server_error" } })}\n\n`;
  await page.route("**/v1/chat/completions", (route) => route.fulfill({ contentType: "text/event-stream", body }));
  await ask(page, FRANCE);
  assert.match(await page.getByRole("alert").innerText(), /the device was lost/);
  assert.equal(await whole(page), "The capital");
});

await test("a call of a tool is shown, and its result goes back", async (page) => {
  await page.getByRole("button", { name: "Settings" }).click();
  await page.getByLabel(/^Tools/).fill(JSON.stringify(WEATHER));
  await page.getByRole("button", { name: "Settings" }).click();
  await ask(page, "What is the weather in Paris?");
  const card = page.locator("article.assistant .card");
  await card.getByRole("button").waitFor();
  assert.match(await card.innerText(), /weather/);
  assert.match(await card.locator("pre").innerText(), /"Paris"/);
  await shot(page, "tool");
  const asked = page.waitForRequest("**/v1/chat/completions");
  await card.getByLabel(/^Result of/).fill('{"temperature":21,"sky":"sunny"}');
  await card.getByRole("button", { name: "Give this result" }).click();
  const { messages } = (await asked).postDataJSON();
  assert.equal(messages[1].tool_calls[0].id, messages[2].tool_call_id);
  assert.match(await whole(page, 1), /21 degrees and sunny/);
  await shot(page, "tool-result");
});

await test("text is text: what looks like HTML is shown, not run", async (page) => {
  const text = "# Sorting\n\nThere are **two** ways, with `sort`:\n\n1. First <b>this</b>\n2. Then that\n\n- one\n- two\n\n"
    + "```js\n<img src=x onerror=alert(1)>\nlet a = **b**;\n```\n\nAnd that is all.";
  const chunk = (choice) => `data: ${JSON.stringify({ choices: [{ index: 0, ...choice }] })}\n\n`;
  const body = chunk({ delta: { content: text } }) + chunk({ delta: {}, finish_reason: "stop" }) + "data: [DONE]\n\n";
  await page.route("**/v1/chat/completions", (route) => route.fulfill({ contentType: "text/event-stream", body }));
  await ask(page, "<i>Markdown</i>, please");
  await whole(page);
  const within = answers(page).locator(".text");
  assert.equal(await page.locator("article i, article b, article img").count(), 0);
  assert.match(await page.locator("article.user").innerText(), /<i>Markdown<\/i>/);
  assert.equal(await within.locator("strong").innerText(), "two");
  assert.equal(await within.locator("ol > li").count(), 2);
  assert.equal(await within.locator("ul > li").count(), 2);
  assert.equal(await within.locator("h3").innerText(), "Sorting");
  assert.equal(await within.locator("pre").innerText(), "<img src=x onerror=alert(1)>\nlet a = **b**;");
  await shot(page, "markdown");
});

await test("a server with a key asks for it", async (page) => {
  await page.route("**/v1/**", (route) => {
    if (route.request().headers().authorization === "Bearer open sesame") return route.continue();
    return route.fulfill({ status: 401, json: { error: { message: "the API key is wrong", type: "authentication_error" } } });
  });
  await page.reload();
  await page.getByLabel(/API key/).fill("open sesame");
  await page.getByRole("button", { name: "Use this key" }).click();
  await page.locator("h1.ready").waitFor();
  await ask(page, FRANCE);
  assert.match(await whole(page), /Paris/);
  // A key that no longer holds is asked for again, and the question is not lost.
  await page.evaluate(() => sessionStorage.setItem("key", "stale"));
  await ask(page, FRANCE);
  await page.getByLabel(/API key/).fill("open sesame");
  await shot(page, "key");
  await page.getByRole("button", { name: "Use this key" }).click();
  assert.match(await whole(page, 1), /Paris/);
});

await test("a model that is still loading is waited for", async (page) => {
  let times = 0;
  await page.route("**/health", (route) => {
    times += 1;
    return times > 1 ? route.continue() : route.fulfill({ status: 503, json: { error: { message: "loading model" } } });
  });
  await page.reload();
  await page.getByText("Loading the model…").waitFor();
  await page.locator("h1.ready").waitFor();
});

await test("dark where the system is dark", async (page) => {
  await ask(page, FRANCE);
  await whole(page);
  const page_color = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const [red] = page_color.match(/\d+/g).map(Number);
  assert.ok(red < 64, `the page is ${page_color}`);
  await shot(page, "dark");
}, { colorScheme: "dark" });

await test("narrow, as on a phone", async (page) => {
  await fits(page);
  await page.getByRole("button", { name: "Settings" }).click();
  await fits(page);
  await shot(page, "narrow-settings");
  await page.getByRole("button", { name: "Settings" }).click();
  await ask(page, `${FRANCE} ${"wide".repeat(40)}`);
  await whole(page);
  await ask(page, FRANCE);
  await whole(page, 1);
  await fits(page);
  // The box stays, and the end of the answer comes into view above it.
  const bottom = (locator) => locator.evaluate((element) => element.getBoundingClientRect().bottom);
  assert.ok(await bottom(box(page)) <= 640);
  assert.ok(await bottom(answers(page).nth(1)) <= await bottom(page.locator("main")));
  await shot(page, "narrow");
}, { viewport: { width: 340, height: 640 }, hasTouch: true, isMobile: true });

await test("the keyboard is enough, and everything has a name", async (page) => {
  assert.equal(await page.evaluate(() => document.activeElement.id), "question");
  const nameless = await page.evaluate(() => [...document.querySelectorAll("button, input, select, textarea")]
    .filter((element) => !(element.labels?.length || element.textContent.trim() || element.getAttribute("aria-label")))
    .map((element) => element.id));
  assert.deepEqual(nameless, []);
  await page.getByRole("button", { name: FRANCE }).focus();
  await page.keyboard.press("Enter");
  assert.match(await whole(page), /Paris/);
  assert.equal(await page.getByRole("log").getAttribute("aria-live"), "polite");
});

await browser.close();
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);
