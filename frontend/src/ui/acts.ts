/** Does to a sandbox what a person chose, asking first where something ends; every page with sandboxes has one. */
import { toast } from "svelte-sonner";
import type { Api, Sandbox } from "../core/api";
import { moment } from "../core/format";
import { type Act, warning } from "../core/lifecycle";
import { title } from "../core/sandboxes";
import { Store } from "../core/store";
import { done, problem } from "./notify";
import type { Question } from "./parts/Confirm.svelte";

export const ACT_LABEL: Record<Act, string> = {
  open: "Open",
  resume: "Resume",
  start: "Start",
  restore: "Restore",
  suspend: "Suspend",
  fork: "Fork…",
  snapshot: "Snapshot…",
  stop: "Stop…",
  extend: "Extend…",
  rename: "Rename…",
  details: "Details",
  delete: "Delete…",
};

const REFUSED: Partial<Record<Act, string>> = {
  resume: "was not resumed",
  start: "was not started",
  restore: "was not restored",
  suspend: "was not suspended",
  stop: "was not stopped",
  delete: "was not deleted",
};

export class Acts {
  readonly question = new Store<Question | null>(null);
  readonly renaming = new Store<Sandbox | null>(null);
  readonly forking = new Store<Sandbox | null>(null);
  readonly snapshotting = new Store<Sandbox | null>(null);
  readonly extending = new Store<Sandbox | null>(null);
  readonly api: Api;
  #changed: (sandbox: Sandbox | null) => void;

  /** `changed` hears of what an act led to; null: of something that has to be asked for. */
  constructor(api: Api, changed: (sandbox: Sandbox | null) => void) {
    this.api = api;
    this.#changed = changed;
  }

  changed(sandbox: Sandbox): void {
    this.#changed(sandbox);
  }

  /** `more`: what the page knows that would be lost with it. */
  begin(act: Act, sandbox: Sandbox, more = ""): void {
    const page = `/sandboxes/${sandbox.id}`;
    if (act === "open") location.assign(page);
    else if (act === "details") location.assign(`${page}/details`);
    else if (act === "rename") this.renaming.set(sandbox);
    else if (act === "fork") this.forking.set(sandbox);
    else if (act === "snapshot") this.snapshotting.set(sandbox);
    else if (act === "extend") this.extending.set(sandbox);
    else {
      const text = warning(act, sandbox);
      if (text === null) void this.#run(act, sandbox);
      else
        this.question.set({
          title: `${ACT_LABEL[act].replace("…", "")} ${title(sandbox)}?`,
          text: more + text,
          action: ACT_LABEL[act].replace("…", ""),
          danger: true,
          run: () => this.#run(act, sandbox),
        });
    }
  }

  /** What was forked is said with a way to it; `away` opens it in a tab of its own where the browser lets us. */
  forked(made: Sandbox, away: boolean): void {
    const page = `/sandboxes/${made.id}`;
    const tab = away ? window.open(page, "_blank") : null;
    if (tab) tab.opener = null;
    toast.success(`Forked as ${title(made)}`, {
      description: tab ? "It opens in a new tab. Both go on." : "Both go on.",
      duration: 12_000,
      ...(tab
        ? {}
        : { action: { label: "Open it", onClick: () => window.open(page, "_blank", "noopener") } }),
    });
    this.#changed(made);
  }

  snapshotted(slug: string): void {
    toast.success(`Snapshot ${slug} is taken`, {
      description: "Others can boot from it.",
      duration: 12_000,
      action: { label: "Snapshots", onClick: () => window.open("/snapshots", "_blank", "noopener") },
    });
  }

  extended(sandbox: Sandbox): void {
    done(`${title(sandbox)} has time until ${moment(sandbox.stop_at ?? "")}`);
    this.#changed(sandbox);
  }

  async #run(act: Act, sandbox: Sandbox): Promise<void> {
    const { api } = this;
    try {
      if (act === "delete") {
        await api.sandboxDelete(sandbox.id);
        this.#changed(null);
      } else if (act === "resume") this.#changed(await api.sandboxResume(sandbox.id));
      else if (act === "start") this.#changed(await api.sandboxStart(sandbox.id));
      else if (act === "restore") this.#changed(await api.sandboxRestore(sandbox.id));
      else if (act === "suspend") this.#changed(await api.sandboxSuspend(sandbox.id));
      else if (act === "stop") this.#changed(await api.sandboxStop(sandbox.id));
    } catch (error) {
      problem(`${title(sandbox)} ${REFUSED[act] ?? "is as it was"}`, error);
    }
    // An answer may be older than what an event has told meanwhile.
    setTimeout(() => this.#changed(null), 2000);
  }
}
