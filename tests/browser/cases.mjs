// The cases of the browser client.

export * from "./pages.mjs";
export * from "./servers.mjs";
export * from "./pure.mjs";
