// The form: what is asked, and what becomes of it.

import { Shown } from "/show.js";

const by = (id) => document.getElementById(id);
const text = by("text");
const button = by("fill");
let models = ["student"];
let running = new AbortController();

function say(words) {
  by("status").textContent = words;
}

function fail(words) {
  by("error").textContent = words;
  by("error").hidden = !words;
}

// What went wrong, in words.
function reason(status, error) {
  if (status === 401) {
    by("token_row").hidden = false;
    by("token").focus();
    return "This server wants a token. Type it above, then press Fill.";
  }
  if (status === 503) return "The model is busy or still loading. Try again in a moment.";
  if (status === 504) return "That took too long. Try a shorter sentence or fewer blanks.";
  const words = (error || "The server failed.").replace(/^texts\[0\](\.text)?: /, "");
  return words[0].toUpperCase() + words.slice(1) + ".";
}

async function ask(model, constraints, signal) {
  const search = {
    order: by("order").value,
    top_k: Number(by("top_k").value),
    max_pieces: Number(by("max_pieces").value),
  };
  const headers = { "content-type": "application/json" };
  if (by("token").value) headers.authorization = `Bearer ${by("token").value}`;
  const body = JSON.stringify({ model, texts: [{ text: text.value, search, constraints }] });
  let answer;
  try {
    answer = await fetch("/v1/fill", { method: "POST", headers, body, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached. Does it still run?");
  }
  const content = await answer.json();
  if (!answer.ok) throw new Error(reason(answer.status, content.error));
  return content.texts[0];
}

// What asks a model again where some blanks are chosen, as long as the question is the same.
function askMore(model, blanks, question) {
  return async (chosen) => {
    const constraints = Array.from({ length: blanks }, (_, blank) =>
      chosen.has(blank) ? { candidates: [chosen.get(blank)] } : {},
    );
    try {
      if (question !== text.value) return [];
      return (await ask(model, constraints, running.signal)).fillings;
    } catch {
      return []; // more is not needed: what is shown stays
    }
  };
}

async function fill() {
  running.abort();
  const mine = (running = new AbortController());
  const question = text.value;
  fail("");
  say("Filling ...");
  button.setAttribute("aria-busy", "true");
  try {
    const filled = await Promise.all(models.map((model) => ask(model, [], mine.signal)));
    const shown = filled.map(
      (one, number) =>
        new Shown(
          models.length > 1 ? models[number] : "",
          one,
          askMore(models[number], one.blanks.length, question),
          say,
        ),
    );
    by("results").replaceChildren(...shown.map((one) => one.article));
    const ways = filled[0].fillings.length;
    say(
      ways
        ? `${ways} ${ways === 1 ? "way" : "ways"} to fill it. Press a blank to see its candidates.`
        : "",
    );
  } catch (error) {
    if (error.name === "AbortError") return;
    say("");
    fail(error.message);
  } finally {
    if (mine === running) button.removeAttribute("aria-busy");
  }
}

function insert() {
  const { selectionStart: from, selectionEnd: to, value } = text;
  text.value = `${value.slice(0, from)}___${value.slice(to)}`;
  text.setSelectionRange(from + 3, from + 3);
  text.focus();
}

async function greet() {
  try {
    const health = await (await fetch("/healthz")).json();
    if (!health.models) return;
    models = health.models;
    document.querySelector("main").classList.toggle("pair", models.length > 1);
    by("token_row").hidden = !health.token_required;
    by("models").replaceChildren(
      models.length > 1 ? "Student and teacher, side by side" : "",
    );
  } catch {
    // the first question will say what is wrong
  }
}

by("form").addEventListener("submit", (event) => {
  event.preventDefault();
  fill();
});
text.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    fill();
  }
});
by("insert").addEventListener("click", insert);
by("models").replaceChildren("A small model guesses the missing words.");
greet();
