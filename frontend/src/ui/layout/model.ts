/** One open workspace: its connections and parts, and what a person can do with them. */
import type { Api, Sandbox } from "../../core/api";
import { decodeBase64 } from "../../core/base64";
import { Commands } from "../../core/commands";
import { Disposables } from "../../core/disposable";
import { Documents } from "../../core/documents";
import type { Events } from "../../core/events";
import { asText, edited, Files } from "../../core/files";
import type { Act } from "../../core/lifecycle";
import type { Denial } from "../../core/network";
import { base, parent, within } from "../../core/paths";
import { Rpc } from "../../core/rpc";
import { BEGINNING, type Input, next, type Scene, scene } from "../../core/scene";
import type { Connect } from "../../core/socket";
import { Store } from "../../core/store";
import { TerminalTabs } from "../../core/terminals";
import { Tree } from "../../core/tree";
import { type Source, Uploads } from "../../core/uploads";
import { Watch } from "../../core/watch";
import type { TerminalInfo } from "../../xterm_bridge/protocol";
import { Acts } from "../acts";
import type { PageConfig } from "../config";
import { EditorTexts } from "../editor/texts";
import { fromFiles } from "../files/dropped";
import { tellDenied } from "../network/denials";
import { done, problem } from "../notify";
import { copy } from "../page";
import type { Question } from "../parts/Confirm.svelte";
import { serverApi, serverEvents } from "../server";
import { socketTo } from "../sockets";
import { workspaceCommands } from "./commands";

/** Where the tree begins until the machine has said what its user's home is. */
const HOME = "/home/app";

export type TreeEdit = { kind: "rename" | "file" | "folder"; path: string };
export type Area = "files" | "editor" | "terminal";

interface Pane {
  focus(): void;
  find(): void;
  hold(): void;
  release(): void;
}

/** The browser may refuse to keep anything; then a reload simply remembers nothing. */
function remembered(key: string) {
  return {
    load(): string | null {
      try {
        return localStorage.getItem(key);
      } catch {
        return null;
      }
    },
    save(text: string): void {
      try {
        localStorage.setItem(key, text);
      } catch {
        // As said.
      }
    },
  };
}

export class WorkspaceModel {
  readonly id: string;
  readonly config: PageConfig;
  readonly api: Api;
  readonly events: Events;
  readonly rpc: Rpc;
  readonly files: Files;
  readonly texts = new EditorTexts();
  readonly documents: Documents;
  readonly tree: Tree;
  readonly uploads: Uploads;
  readonly terminals: TerminalTabs;
  readonly terminalConnect: Connect;
  readonly commands = new Commands();
  readonly panes = new Map<number, Pane>();

  readonly sandbox = new Store<Sandbox | null>(null);
  /** What is shown, and what is to be said over it. */
  readonly scene = new Store<Scene>({ kind: "loading" });
  /** Whether terminals may be shown: the machine ran at least once since the page was opened. */
  readonly entered = new Store(false);
  readonly may: ReadonlySet<string>;
  readonly acts: Acts;
  readonly treeEdit = new Store<TreeEdit | null>(null);
  readonly question = new Store<Question | null>(null);
  readonly palette = new Store(false);
  readonly help = new Store(false);
  readonly comparing = new Store<{ path: string; disk: string } | null>(null);
  readonly area = new Store<Area>("terminal");
  readonly filesShown = new Store(true);
  readonly terminalShown = new Store(true);

  /** The keyboard goes to a terminal that comes up, unless the person is elsewhere. */
  focusTerminal = true;

  #page = BEGINNING;
  #told = 0;
  #startedAt: string | null = null;
  #looking: number | undefined;
  #looked = 0;
  #undo = new Disposables();
  #watch: Watch;

  constructor(config: PageConfig & { sandbox: string }) {
    this.config = config;
    this.id = config.sandbox;
    this.api = serverApi(config);
    this.may = new Set(config.may);
    this.acts = new Acts(this.api, (changed) => {
      if (!changed) void this.refresh();
      else if (changed.id === this.id) this.#now(changed);
    });
    this.events = serverEvents(config);
    this.rpc = new Rpc(socketTo(`/ws/sandboxes/${this.id}/rpc`));
    this.terminalConnect = socketTo(`/ws/sandboxes/${this.id}/terminal`);
    this.files = new Files(this.rpc);
    this.documents = new Documents(this.files, this.texts, problem);
    this.texts.onEdited = (path, dirty) => this.documents.edited(path, dirty);
    const layout = this.#layout();
    this.tree = new Tree(HOME, (directory) => this.files.list(directory), layout.expanded);
    this.uploads = new Uploads(this.rpc);
    this.#watch = new Watch(this.rpc, this.tree, this.documents);
    this.terminals = new TerminalTabs(remembered(`atoll:${this.id}:terminals`));
    this.commands.add(...workspaceCommands(this));

    this.#undo.add(
      this.events.watch(
        () => void this.refresh(),
        (event) => {
          if (event.kind === "denial" && (event.payload as Denial).sandbox === this.id)
            tellDenied(this.api, this.may, event.payload as Denial);
          if (event.kind !== "sandbox" || (event.payload as Sandbox).id !== this.id) return;
          this.#told++;
          this.#now(event.payload as Sandbox);
        },
      ),
    );
    this.#undo.add(
      this.rpc.link.subscribe((link) => {
        if (link === "open") void this.#connected();
        else if (link === "waiting") this.look();
      }),
    );
    this.#undo.add(
      this.tree.state.subscribe(() => {
        this.#watch.soon();
      }),
    );
    this.#undo.add(
      this.documents.state.subscribe(() => {
        this.#watch.soon();
        this.#rememberLayout();
      }),
    );
    this.#undo.add(() => this.rpc.stop());
    this.#undo.add(() => clearTimeout(this.#looking));
    this.events.start();
    void this.refresh();
    for (const path of layout.open) void this.#reopen(path, layout.active);
  }

  dispose(): void {
    this.#undo.dispose();
  }

  // -- the machine

  async refresh(): Promise<void> {
    try {
      this.#now(await this.api.sandbox(this.id));
    } catch (error) {
      const code = error instanceof Error && "code" in error ? error.code : "";
      const why = error instanceof Error ? error.message : String(error);
      if (code === "NOT_FOUND") this.#step({ kind: "gone", why: "This sandbox was deleted." });
      else if (!this.sandbox.value) this.#step({ kind: "gone", why });
    }
  }

  /**
   * Asks what became of the machine, at once but not all the time: a connection that drops may be the first that is
   * heard of a suspend, and connecting again would undo it.
   */
  look(): void {
    const wait = Math.max(0, this.#looked + 1000 - Date.now());
    this.#looking ??= setTimeout(() => {
      this.#looking = undefined;
      this.#looked = Date.now();
      void this.refresh();
    }, wait);
  }

  #step(input: Input): void {
    const { state, resume } = next(this.#page, input);
    this.#page = state;
    this.sandbox.set(state.sandbox);
    this.scene.set(scene(state));
    this.entered.set(state.entered);
    if (resume) void this.#ask(this.api.sandboxResume(this.id));
  }

  /** Takes the answer, unless events told something meanwhile: they are newer. */
  async #ask(answer: Promise<Sandbox>): Promise<void> {
    const told = this.#told;
    try {
      const sandbox = await answer;
      if (told === this.#told) this.#now(sandbox);
    } catch (error) {
      this.#step({ kind: "refused", why: error instanceof Error ? error.message : String(error) });
    }
    setTimeout(() => void this.refresh(), 2000);
  }

  #now(sandbox: Sandbox): void {
    const machine = sandbox.state === "running";
    if (machine) {
      // Started anew: its terminals went with the old processes.
      if (this.#startedAt !== null && this.#startedAt !== sandbox.started_at) this.terminals.clear();
      this.#startedAt = sandbox.started_at;
    }
    this.#step({ kind: "sandbox", sandbox });
    if (machine) {
      this.rpc.start();
      this.rpc.retryNow();
    } else this.rpc.stop();
    for (const pane of this.panes.values()) machine ? pane.release() : pane.hold();
  }

  async #connected(): Promise<void> {
    this.#watch.begin();
    const home = await this.rpc.call<string>("realPath", { path: "." }).catch(() => HOME);
    this.tree.setRoot(home);
    await Promise.allSettled([this.tree.refresh(), this.documents.checkAll(), this.#takeUpTerminals()]);
    this.#watch.soon();
  }

  async #takeUpTerminals(): Promise<void> {
    if (this.terminals.state.value.tabs.length) return;
    const running = await this.#running();
    this.terminals.restore(running, !!this.sandbox.value?.forked_from);
  }

  async #running(): Promise<TerminalInfo[]> {
    try {
      const all = await this.rpc.call<TerminalInfo[]>("terminal.list", {});
      return all.filter((terminal) => terminal.running);
    } catch {
      return [];
    }
  }

  /** The person wants the suspended machine to go on. */
  resume(): void {
    this.#step({ kind: "press" });
  }

  start(): void {
    void this.#ask(this.api.sandboxStart(this.id));
  }

  restore(): void {
    void this.#ask(this.api.sandboxRestore(this.id));
  }

  /** What somebody chose in a menu; whoever ends the machine is told what is not saved. */
  act(act: Act): void {
    const sandbox = this.sandbox.value;
    if (!sandbox) return;
    const unsaved = this.documents.dirty.length;
    const warning = unsaved ? `${unsaved} file${unsaved > 1 ? "s are" : " is"} not saved. ` : "";
    if (act === "resume") this.resume();
    else this.acts.begin(act, sandbox, warning);
  }

  // -- files

  async open(path: string): Promise<void> {
    this.focusTerminal = false;
    await this.documents.open(path);
    this.area.set("editor");
    this.texts.focus();
  }

  async #reopen(path: string, active: string | null): Promise<void> {
    await this.documents.open(path);
    if (active !== null) this.documents.show(active);
    if (this.documents.get(path)?.kind === "failed") this.documents.close(path);
  }

  async save(path: string): Promise<void> {
    const result = await this.documents.save(path);
    if (result === "conflict") this.documents.show(path);
  }

  async compare(path: string): Promise<void> {
    try {
      const text = asText(decodeBase64(await this.rpc.call<string>("readFile", { path })));
      if (text === null) throw new Error("The file is not text any more.");
      this.comparing.set({ path, disk: edited(text).text });
    } catch (error) {
      problem("The versions cannot be compared", error);
    }
  }

  askClose(path: string): void {
    const document = this.documents.get(path);
    if (!document) return;
    const close = () => {
      this.documents.close(path);
      if (this.comparing.value?.path === path) this.comparing.set(null);
    };
    if (!document.dirty) {
      close();
      return;
    }
    this.question.set({
      title: `Save ${document.name}?`,
      text: "It has changes that are not saved.",
      action: "Save",
      run: async () => {
        if ((await this.documents.save(path)) === "saved") close();
      },
      other: { action: "Don't save", run: close },
    });
  }

  beginCreate(kind: "file" | "folder"): void {
    const directory = this.tree.target;
    this.filesShown.set(true);
    this.area.set("files");
    const ready = directory === this.tree.state.value.root || this.tree.state.value.expanded.has(directory);
    void (ready ? Promise.resolve() : this.tree.expand(directory)).then(() =>
      this.treeEdit.set({ kind, path: directory }),
    );
  }

  async create(kind: "file" | "folder", path: string): Promise<void> {
    try {
      if (kind === "file") await this.files.createFile(path);
      else await this.files.createDirectory(path);
      await this.tree.load(parent(path));
      this.tree.focus(path);
      if (kind === "file") await this.open(path);
    } catch (error) {
      problem(`${base(path)} was not created`, error);
    }
  }

  async rename(from: string, to: string): Promise<void> {
    try {
      await this.documents.rename(from, to);
      this.tree.rename(from, to);
      await this.tree.load(parent(to));
      if (parent(from) !== parent(to)) await this.tree.load(parent(from));
    } catch (error) {
      problem(`${base(from)} keeps its name`, error);
    }
  }

  askRemove(path: string): void {
    const unsaved = this.documents.dirty.some((document) => within(document.path, path));
    this.question.set({
      title: `Delete ${base(path)}?`,
      text: `It is removed from the machine with all it contains${unsaved ? ", also from the editor where it is not saved" : ""}. There is no way back.`,
      action: "Delete",
      danger: true,
      run: async () => {
        try {
          await this.files.remove(path);
          for (const document of this.documents.state.value.open)
            if (within(document.path, path)) this.documents.close(document.path);
        } catch (error) {
          problem(`${base(path)} was not deleted`, error);
        }
        await this.tree.load(parent(path));
        this.tree.focus("");
      },
    });
  }

  download(path: string, directory: boolean): void {
    const link = document.createElement("a");
    const kind = directory ? "archive" : "content";
    const query = new URLSearchParams({ path, organization: this.config.organization.slug });
    link.href = `/api/v1/sandboxes/${this.id}/files/${kind}?${query}`;
    link.download = directory ? `${base(path)}.tar.gz` : base(path);
    link.click();
  }

  copyPath(path: string): void {
    void copy(path).then((ok) => {
      if (ok) done("Path copied");
    });
  }

  pickUpload(): void {
    const picker = document.createElement("input");
    picker.type = "file";
    picker.multiple = true;
    picker.onchange = () => void this.upload(this.tree.target, fromFiles(picker.files ?? []), []);
    picker.click();
  }

  async upload(directory: string, sources: readonly Source[], folders: readonly string[]): Promise<void> {
    if (sources.length === 0 && folders.length === 0) return;
    const top = new Set(
      [...sources.map(({ path }) => path), ...folders].map((path) => path.split("/")[0] ?? path),
    );
    let existing: string[] = [];
    try {
      existing = (await this.files.list(directory)).map(({ name }) => name).filter((name) => top.has(name));
    } catch (error) {
      problem("Nothing was uploaded", error);
      return;
    }
    const run = async () => {
      const ended = await this.uploads.add(directory, sources, folders);
      await this.tree.load(directory);
      if (directory !== this.tree.state.value.root && !this.tree.state.value.expanded.has(directory))
        await this.tree.expand(directory);
      await this.documents.checkAll();
      if (ended.state === "failed")
        problem(`${ended.label} was not uploaded whole`, new Error(ended.problem));
      else setTimeout(() => this.uploads.dismiss(ended.id), 4000);
    };
    if (existing.length === 0) await run();
    else
      this.question.set({
        title: existing.length === 1 ? `Replace ${existing[0]}?` : `Replace ${existing.length} things?`,
        text: `${existing.slice(0, 5).join(", ")}${existing.length > 5 ? " and more" : ""} ${existing.length === 1 ? "is" : "are"} in ${directory} already. Files of the same names are overwritten.`,
        action: "Replace",
        danger: true,
        run,
      });
  }

  // -- terminals

  newTerminal(cwd?: string): void {
    this.focusTerminal = true;
    this.terminalShown.set(true);
    this.area.set("terminal");
    this.terminals.open(cwd);
  }

  /** Those that run on the machine and have no tab here. */
  async otherTerminals(): Promise<TerminalInfo[]> {
    const mine = new Set(this.terminals.state.value.tabs.map(({ id }) => id));
    return (await this.#running()).filter(({ id }) => !mine.has(id));
  }

  askCloseTerminal(key: number): void {
    const tab = this.terminals.state.value.tabs.find((candidate) => candidate.key === key);
    if (!tab) return;
    const close = () => {
      this.terminals.close(key);
      if (tab.id) void this.rpc.call("terminal.close", { id: tab.id }).catch(() => undefined);
    };
    void this.#running().then((running) => {
      if (!running.some(({ id }) => id === tab.id)) close();
      else
        this.question.set({
          title: "End this terminal?",
          text: "The shell and what runs in it are ended. To leave it running, just close the page: it will be there when you come back.",
          action: "End it",
          danger: true,
          run: close,
        });
    });
  }

  findInTerminal(): void {
    this.panes.get(this.terminals.state.value.active)?.find();
  }

  focus(area: Area): void {
    if (area === "files") this.filesShown.set(true);
    if (area === "terminal") this.terminalShown.set(true);
    this.area.set(area);
    // The area may have to appear first.
    setTimeout(() => {
      if (area === "editor") this.texts.focus();
      else if (area === "terminal") this.panes.get(this.terminals.state.value.active)?.focus();
      else document.querySelector<HTMLElement>('[data-area="files"]')?.focus();
    }, 30);
  }

  nextArea(): void {
    const order: Area[] = ["files", "editor", "terminal"];
    const here = document.activeElement?.closest<HTMLElement>("[data-area]")?.dataset.area as
      | Area
      | undefined;
    const at = here ? order.indexOf(here) : -1;
    for (let step = 1; step <= order.length; step++) {
      const next = order[(at + step) % order.length];
      if (next === "editor" && !this.documents.active) continue;
      if (next) this.focus(next);
      return;
    }
  }

  // -- remembered between visits

  #layout(): { open: string[]; active: string | null; expanded: string[] } {
    try {
      const raw = JSON.parse(remembered(`atoll:${this.id}:files`).load() ?? "null");
      if (raw) return { open: raw.open ?? [], active: raw.active ?? null, expanded: raw.expanded ?? [] };
    } catch {
      // Nothing that we wrote.
    }
    return { open: [], active: null, expanded: [] };
  }

  #rememberLayout(): void {
    const { open, active } = this.documents.state.value;
    remembered(`atoll:${this.id}:files`).save(
      JSON.stringify({
        open: open.map(({ path }) => path).slice(0, 20),
        active,
        expanded: [...(this.tree?.state.value.expanded ?? [])].slice(0, 100),
      }),
    );
  }
}
