// The API's document, read and shown.

import { make, prose } from "./view.js";

const named = (document, schema) => (schema?.$ref ? document.components.schemas[schema.$ref.split("/").pop()] : schema);

/** A schema in a few words, and the schemas of objects in it. */
function told(document, schema) {
  const found = named(document, schema) ?? {};
  if (found.anyOf ?? found.oneOf) {
    const parts = (found.anyOf ?? found.oneOf).map((one) => told(document, one)).filter((one) => one.words !== "null");
    return { words: [...new Set(parts.map((one) => one.words))].join(" or "), inner: parts.flatMap((one) => one.inner) };
  }
  if (found.const !== undefined) return { words: JSON.stringify(found.const), inner: [] };
  if (found.enum) return { words: found.enum.map((one) => JSON.stringify(one)).join(", "), inner: [] };
  if (found.type === "array") {
    const { words, inner } = told(document, found.items);
    return { words: `list of ${words}`, inner };
  }
  if (found.properties) return { words: found.title ?? "object", inner: [found] };
  const limits = [["minimum", "≥"], ["exclusiveMinimum", ">"], ["maximum", "≤"], ["exclusiveMaximum", "<"], ["minLength", "length ≥"], ["maxLength", "length ≤"]];
  const bounds = limits.filter(([name]) => found[name] !== undefined && Math.abs(found[name]) < 2 ** 31 - 1).map(([name, sign]) => `${sign} ${found[name]}`);
  return { words: [found.type ?? "anything", ...bounds].join(" "), inner: [] };
}

function fields(document, schema, depth = 0) {
  const found = named(document, schema);
  const needed = new Set(found.required ?? []);
  const rows = Object.entries(found.properties ?? {}).map(([name, field]) => {
    const { words, inner } = told(document, field);
    const more = depth < 4 ? inner.map((one) => make("details", {}, make("summary", {}, one.title), fields(document, one, depth + 1))) : [];
    const description = field.description ? make("small", {}, field.description) : null;
    return make("div", {}, make("dt", {}, name, needed.has(name) ? " *" : ""), make("dd", {}, words, description, ...more));
  });
  return make("dl", {}, ...rows);
}

const EXAMPLES = {
  "/v1/chat/completions": { messages: [{ role: "user", content: "Hello" }], max_tokens: 64, stream: true },
  "/v1/completions": { prompt: "Once upon a time", max_tokens: 64 },
  "/v1/embeddings": { input: ["one text", "another"] },
  "/v1/classify": { input: "房间很干净，下次还来！" },
  "/v1/moderations": { input: "a text" },
  "/v1/fill-mask": { input: "房间很[MASK]。", top: 3 },
  "/v1/token-classify": { input: "马云在杭州创办了阿里巴巴。" },
  "/v1/answer": { question: "Who wrote it?", context: "Cao Xueqin wrote Dream of the Red Chamber." },
};

function command(path, method) {
  const body = EXAMPLES[path];
  const address = `${location.origin}${path}`;
  if (method !== "post" || !body) return `curl ${address}`;
  return `curl ${body.stream ? "-N " : ""}${address} \\\n  -H 'Content-Type: application/json' \\\n  -d '${JSON.stringify(body)}'`;
}

function operation(document, path, method, found) {
  const parts = [
    make("h2", { id: path }, make("span", { class: "method" }, method.toUpperCase()), ` ${path}`),
    ...prose(found.description ?? found.summary),
    make("pre", {}, command(path, method)),
  ];
  const body = found.requestBody?.content["application/json"]?.schema;
  if (body) parts.push(make("h3", {}, "Request"), fields(document, body));
  const answer = found.responses[200]?.content?.["application/json"]?.schema;
  if (answer) parts.push(make("h3", {}, "Answer"), fields(document, answer));
  const errors = Object.entries(found.responses).filter(([status]) => status >= 400);
  if (errors.length) {
    const rows = errors.map(([status, one]) => make("div", {}, make("dt", {}, status), make("dd", {}, one.description)));
    parts.push(make("details", {}, make("summary", {}, "Errors"), make("dl", {}, ...rows)));
  }
  return make("section", {}, ...parts);
}

const found = await (await fetch("/openapi.json")).json();
document.getElementById("about").textContent = found.info.description;
for (const [path, methods] of Object.entries(found.paths)) {
  document.getElementById("contents").append(make("a", { href: `#${path}` }, path));
  for (const [method, one] of Object.entries(methods)) document.getElementById("operations").append(operation(found, path, method, one));
}
