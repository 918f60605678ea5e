// One model's answer: the sentence with its blanks in place, their candidates, the other fillings.
// Texts come from people and models: they enter the page as text, never as markup.

export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

const percent = (share) => {
  if (share >= 0.1) return `${(100 * share).toFixed(0)} %`;
  if (share >= 0.001) return `${(100 * share).toFixed(1)} %`;
  return "< 0.1 %";
};

function row(tag, words, probability, most, properties = {}) {
  const made = element(
    tag,
    { className: "row", ...properties },
    element("span", { className: "words" }, words),
    element("span", { className: "share" }, percent(probability)),
  );
  made.style.setProperty("--share", `${(100 * probability) / (most || 1)}%`);
  return made;
}

let numbers = 0; // of elements that need a name

export class Shown {
  // more(chosen) resolves to fillings in which blanks hold what was chosen; say(words) announces.
  constructor(title, filled, more, say) {
    this.fillings = filled.fillings;
    this.more = more;
    this.say = say;
    this.chosen = new Map(); // answers that a person chose, by blank
    this.article = element("article", { ariaLabel: title || "Answer" });
    this.title = title;
    this.current = this.fillings[0];
    this.draw();
  }

  agrees(filling, chosen = this.chosen) {
    return [...chosen].every(([blank, text]) => filling.answers[blank].text === text);
  }

  // The different answers of a blank; each as probable as the best filling that holds it.
  candidates(blank) {
    const found = new Map();
    for (const { answers, probability } of this.fillings) {
      const text = answers[blank].text;
      found.set(text, Math.max(found.get(text) || 0, probability));
    }
    return [...found].sort((a, b) => b[1] - a[1]);
  }

  // Ask for fillings in which blanks hold what is given; say whether there are new ones.
  async learn(given) {
    const known = new Set(this.fillings.map((filling) => filling.sentence));
    const found = (await this.more(given)).filter((filling) => !known.has(filling.sentence));
    this.fillings = [...this.fillings, ...found].sort((a, b) => b.score - a.score);
    return found.length > 0;
  }

  async choose(blank, text) {
    this.chosen.set(blank, text);
    if (!this.fillings.some((filling) => this.agrees(filling))) {
      this.chosen = new Map([[blank, text]]); // what was chosen before does not go with it
    }
    this.current = this.fillings.find((filling) => this.agrees(filling));
    this.draw(blank);
    this.say(this.current.sentence);
    if (this.current.answers.length < 2) return;
    if ((await this.learn(new Map(this.chosen))) && !this.list) this.draw(this.focused());
  }

  focused() {
    return [...this.article.querySelectorAll(".blank")].indexOf(document.activeElement);
  }

  draw(focus = -1) {
    this.close();
    const parts = this.title ? [element("h2", {}, this.title)] : [];
    if (!this.current) {
      parts.push(element("p", {}, "No answer meets what was asked."));
      this.article.replaceChildren(...parts);
      return;
    }
    const characters = [...this.current.sentence]; // offsets count code points
    const sentence = element("p", { className: "sentence" });
    const blanks = [];
    let from = 0;
    this.current.answers.forEach((answer, blank) => {
      sentence.append(characters.slice(from, answer.begin).join(""));
      const button = element(
        "button",
        { type: "button", className: this.chosen.has(blank) ? "blank chosen" : "blank" },
        answer.text,
      );
      button.setAttribute("aria-haspopup", "listbox");
      button.setAttribute("aria-expanded", "false");
      button.setAttribute("aria-label", `Blank ${blank + 1}: ${answer.text}`);
      button.addEventListener("click", () => this.toggle(button, blank));
      button.addEventListener("keydown", (event) => {
        if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
        event.preventDefault();
        this.open(button, blank);
      });
      blanks.push(button);
      sentence.append(button);
      from = answer.end;
    });
    sentence.append(characters.slice(from).join(""));
    this.article.replaceChildren(...parts, sentence, ...this.others());
    if (focus >= 0) blanks[focus].focus();
  }

  others() {
    const others = this.fillings.filter((filling) => filling !== this.current);
    if (!others.length) return [];
    const most = Math.max(...this.fillings.map((filling) => filling.probability));
    const near = others.filter((filling) => this.agrees(filling));
    const apart = others.filter((filling) => !this.agrees(filling));
    const list = element("ul", { className: "others" });
    for (const filling of [...near, ...apart]) {
      const words = filling.answers.map((answer) => answer.text).join("  \u00b7  ");
      const button = row("button", words, filling.probability, most, { type: "button" });
      button.setAttribute("aria-label", `${filling.sentence} ${percent(filling.probability)}`);
      if (!near.includes(filling)) button.classList.add("apart");
      button.addEventListener("click", () => {
        this.chosen.clear();
        this.current = filling;
        this.draw(0);
        this.say(filling.sentence);
      });
      list.append(element("li", {}, button));
    }
    return [element("h3", { className: "others-title" }, "Other ways to fill it"), list];
  }

  toggle(button, blank) {
    if (this.list && this.button === button) this.close(true);
    else this.open(button, blank);
  }

  // A listbox: the list has the focus, its active option is told by aria-activedescendant.
  open(button, blank, again = false) {
    this.close();
    const candidates = this.candidates(blank);
    const shown = this.current.answers[blank].text;
    const list = element("ul", {
      className: "candidates", role: "listbox", tabIndex: -1, id: `candidates-${numbers++}`,
      ariaLabel: `Candidates of blank ${blank + 1}`,
    });
    candidates.forEach(([text, probability], number) => {
      const option = row("li", text, probability, candidates[0][1], {
        id: `${list.id}-${number}`, role: "option",
      });
      option.setAttribute("aria-selected", String(text === shown));
      option.addEventListener("click", () => this.choose(blank, text));
      list.append(option);
    });
    this.article.append(list);
    this.list = list;
    this.button = button;
    button.setAttribute("aria-expanded", "true");
    button.setAttribute("aria-controls", list.id);
    this.place(list, button);
    this.activate(candidates.findIndex(([text]) => text === shown));
    list.addEventListener("keydown", (event) => this.key(event, blank, candidates));
    list.addEventListener("focusout", (event) => {
      if (this.list === list && event.relatedTarget !== button) this.close();
    });
    list.focus({ preventScroll: true });
    list.scrollIntoView({ block: "nearest" });
    if (!again && this.current.answers.length > 1) this.widen(button, blank, list);
  }

  // More candidates of a blank: what goes with the answers that stand in the others.
  async widen(button, blank, list) {
    const others = new Map(this.current.answers.map((answer, at) => [at, answer.text]));
    others.delete(blank);
    if (!(await this.learn(others)) || this.list !== list) return;
    const active = list.children[this.active].firstChild.textContent;
    this.open(button, blank, true);
    this.activate(this.candidates(blank).findIndex(([text]) => text === active));
  }

  place(list, button) {
    const card = this.article.getBoundingClientRect();
    const where = button.getBoundingClientRect();
    const room = document.documentElement.clientWidth - list.offsetWidth - 8;
    list.style.left = `${Math.max(8, Math.min(where.left, room)) - card.left}px`;
    list.style.top = `${where.bottom - card.top + 6}px`;
  }

  activate(number) {
    const options = [...this.list.children];
    this.active = Math.max(0, Math.min(number, options.length - 1));
    options.forEach((option, at) => option.classList.toggle("active", at === this.active));
    this.list.setAttribute("aria-activedescendant", options[this.active].id);
    options[this.active].scrollIntoView({ block: "nearest" });
  }

  key(event, blank, candidates) {
    const last = candidates.length - 1;
    const moves = { ArrowDown: this.active + 1, ArrowUp: this.active - 1, Home: 0, End: last };
    if (event.key in moves) this.activate(moves[event.key]);
    else if (event.key === "Enter" || event.key === " ") this.choose(blank, candidates[this.active][0]);
    else if (event.key === "Escape") this.close(true);
    else if (event.key === "Tab") return this.close(true);
    else if (event.key.length === 1) {
      const starts = ([text]) => text.toLowerCase().startsWith(event.key.toLowerCase());
      const next = candidates.findIndex((one, at) => at > this.active && starts(one));
      const found = next >= 0 ? next : candidates.findIndex(starts);
      if (found >= 0) this.activate(found);
    } else return;
    event.preventDefault();
  }

  close(back = false) {
    if (!this.list) return;
    const { list, button } = this;
    this.list = null;
    button.setAttribute("aria-expanded", "false");
    button.removeAttribute("aria-controls");
    if (back) button.focus();
    list.remove();
  }
}
