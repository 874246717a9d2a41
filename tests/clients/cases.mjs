// The cases of clients of other formats.

export * from "./openai.mjs";
export * from "./ai-sdk.mjs";
export * from "./event-source.mjs";
