/** Every page's entry: what server-rendered pages need at once, then the part that the page has a place for. */
import "@fontsource-variable/hanken-grotesk";
import "@fontsource-variable/jetbrains-mono";
import "./styles/tokens.css";
import "./styles/base.css";
import { mount } from "svelte";
import { readConfig } from "./ui/config";
import { start } from "./ui/page";

const islands = {
  dashboard: () => import("./ui/dashboard/Dashboard.svelte"),
  details: () => import("./ui/details/Details.svelte"),
  tokens: () => import("./ui/account/Tokens.svelte"),
  secrets: () => import("./ui/account/Secrets.svelte"),
  volumes: () => import("./ui/volumes/Volumes.svelte"),
  snapshots: () => import("./ui/volumes/Snapshots.svelte"),
  members: () => import("./ui/account/Members.svelte"),
  usage: () => import("./ui/usage/Usage.svelte"),
  api: () => import("./ui/api/ApiDocs.svelte"),
  workspace: () => import("./ui/layout/Workspace.svelte"),
};

start();
const config = readConfig();
const target = document.querySelector<HTMLElement>("[data-island]");
const island = config && islands[config.island as keyof typeof islands];
if (config && island && target) {
  island().then((part) => mount(part.default, { target, props: { config } }));
}
