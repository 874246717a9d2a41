// An application's code, for the compiler to check: correct uses must compile, and each mistake must not.

import { compareIds, LlmBridgeError, subscribe, Transcript, type Frame, type Subscription } from "../../src/web/llm-bridge.js";

const answer: Subscription = subscribe(
  { base: "/api", session: "s1", model: "meta-llama/Llama-3.1-8B-Instruct" },
  { after: "last", token: async () => "token", storage: sessionStorage, retry: { attempts: 5 }, signal: AbortSignal.timeout(1000) },
);

answer.on("delta", frame => { document.body.append(frame.text, frame.channel ?? "content"); });
answer.on("end", ({ finish_reason, usage }) => console.log(finish_reason?.length, usage));
answer.on("error", ({ code, message }) => console.log(code.length, message?.length));
answer.once("closed", ({ reason, error }) => { if (reason === "failed") console.log(error?.closeCode?.toFixed()); });
const off: () => void = answer.on("reconnecting", ({ attempt, delayMs, reason }) => console.log(attempt + delayMs, reason === "draining"));
off();

/** Every frame has its members, and no type is forgotten. */
function describe(frame: Frame): string {
  switch (frame.type) {
    case "open": return frame.after;
    case "start": return frame.generation ?? frame.id;
    case "delta": return frame.text + (frame.count ?? 1);
    case "tool_call": return (frame.name ?? "") + frame.arguments;
    case "end": return frame.finish_reason ?? "";
    case "error": return frame.code;
    case "custom": return JSON.stringify(frame.data);
    case "skipped": return frame.reason;
    case "gap": return `${frame.lost ?? "some"} ${frame.next ?? "-"} ${frame.reason === "failover" ? frame.id : ""}`;
    case "status": return frame.state;
    case "refused": return frame.message;
    case "cancel_requested": return "";
    default: { const none: never = frame; return none; }
  }
}

const transcript = new Transcript();
for await (const frame of answer) {
  describe(frame);
  transcript.apply(frame);
}
const [call] = answer.toolCalls(1);
console.log(call?.name, answer.text("reasoning", 1).length, answer.lastId && compareIds(answer.lastId, "0-0"));
await answer.cancel("enough");
const isTaken: boolean = answer.ack();
try {
  const { finish, text } = await answer.done;
  if (finish?.type === "error") console.log(finish.code, text, isTaken);
} catch (error) {
  if (error instanceof LlmBridgeError && error.code === "not_found") console.log(error.status);
}

// @ts-expect-error an unknown event
answer.on("deltas", () => {});
// @ts-expect-error no member of this frame
answer.on("delta", frame => frame.arguments);
// @ts-expect-error read only
answer.lastId = "5-1";
// @ts-expect-error a model is missing
subscribe({ session: "s1" });
// @ts-expect-error no such transport
subscribe("/v1/streams/s/m", { transport: "carrier pigeon" });
