// Talking to the server.

export class Failure extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

function headers() {
  const key = sessionStorage.getItem("triform.key");
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function asked(path, options) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: headers() });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("", 0);
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new Failure(body?.error?.message ?? response.statusText, response.status);
}

export const models = async () => (await (await asked("/v1/models", {})).json()).data;

export const post = async (path, data, signal) => (await asked(path, { method: "POST", body: JSON.stringify(data), signal })).json();

/** The chunks of a stream as they come. */
export async function* stream(path, data, signal) {
  const body = JSON.stringify({ ...data, stream: true, stream_options: { include_usage: true } });
  const response = await asked(path, { method: "POST", body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Failure("", 0);
    held += value;
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ")) continue;
      if (event === "data: [DONE]") return;
      const chunk = JSON.parse(event.slice(6));
      if (chunk.error) throw new Failure(chunk.error.message, 500);
      yield chunk;
    }
  }
}
