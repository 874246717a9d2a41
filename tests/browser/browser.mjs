// One headless Chromium for all cases of a test run. It prints the address at which cases connect to it, and ends when
// its input is closed: together with the process that started it.

import { createRequire } from "node:module";
import path from "node:path";

const require = createRequire(path.join(process.env.BROWSER_MODULES, "package.json"));
const { chromium } = require("playwright-core");
const server = await chromium.launchServer({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  host: "127.0.0.1",
  args: ["--no-sandbox", "--disable-dev-shm-usage"],
});
console.log(server.wsEndpoint());
process.stdin.on("end", async () => { await server.close(); process.exit(0); }).resume();
