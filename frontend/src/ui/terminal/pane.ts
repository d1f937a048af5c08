/** One xterm.js screen and the session that feeds it. */
import { ClipboardAddon, type IClipboardProvider } from "@xterm/addon-clipboard";
import { FitAddon } from "@xterm/addon-fit";
import { SearchAddon } from "@xterm/addon-search";
import { Unicode11Addon } from "@xterm/addon-unicode11";
import { WebLinksAddon } from "@xterm/addon-web-links";
import { Terminal } from "@xterm/xterm";
import "@xterm/xterm/css/xterm.css";
import { Disposables } from "../../core/disposable";
import type { Connect } from "../../core/socket";
import { Store } from "../../core/store";
import { type Status, TerminalSession } from "../../xterm_bridge/session";
import { copy, theme } from "../page";
import { terminalTheme } from "./palette";

/** OSC 52: programs may fill the clipboard and never read it. */
const clipboard: IClipboardProvider = {
  readText: () => "",
  writeText: async (_selection, text) => {
    await copy(text);
  },
};

export interface PaneOptions {
  connect: Connect;
  id: string | null;
  cwd?: string | undefined;
  onId(id: string): void;
  onTitle(title: string): void;
  /** The connection dropped; whether the machine is still there is for the page to find out. */
  onLost(): void;
}

export class TerminalPane {
  readonly status = new Store<Status>({ kind: "connecting", attempt: 0 });
  readonly terminal: Terminal;
  readonly search = new SearchAddon();
  #fit = new FitAddon();
  #session: TerminalSession;
  #undo = new Disposables();
  #options: PaneOptions;

  constructor(host: HTMLElement, options: PaneOptions) {
    this.#options = options;
    const terminal = new Terminal({
      allowProposedApi: true,
      cursorBlink: false,
      cursorStyle: "bar",
      cursorWidth: 2,
      fontFamily: getComputedStyle(host).getPropertyValue("--mono"),
      fontSize: 13.5,
      lineHeight: 1.2,
      scrollback: 10_000,
      theme: terminalTheme(),
      rightClickSelectsWord: true,
      macOptionIsMeta: true,
    });
    this.terminal = terminal;
    this.#undo.add(terminal);
    terminal.loadAddon(this.#fit);
    terminal.loadAddon(this.search);
    terminal.loadAddon(new Unicode11Addon());
    terminal.unicode.activeVersion = "11";
    terminal.loadAddon(new ClipboardAddon(undefined, clipboard));
    terminal.loadAddon(new WebLinksAddon((_event, url) => window.open(url, "_blank", "noopener,noreferrer")));
    terminal.attachCustomKeyEventHandler((event) => this.#key(event));
    terminal.open(host);
    this.fit();
    this.#session = this.#begin(options.id);

    const encoder = new TextEncoder();
    terminal.onData((data) => this.#session.type(encoder.encode(data)));
    terminal.onBinary((data) => this.#session.type(Uint8Array.from(data, (char) => char.charCodeAt(0))));
    terminal.onTitleChange((title) => options.onTitle(title));
    terminal.onResize(() => this.#session.resize());
    const watch = new ResizeObserver(() => this.fit());
    watch.observe(host);
    this.#undo.add(() => watch.disconnect());
    this.#undo.add(
      theme.subscribe(() => {
        terminal.options.theme = terminalTheme();
      }),
    );
    const online = () => this.#session.retryNow();
    addEventListener("online", online);
    this.#undo.add(() => removeEventListener("online", online));
    this.#undo.add(() => this.#session.dispose());
  }

  #begin(id: string | null): TerminalSession {
    const { terminal } = this;
    const { cwd } = this.#options;
    const session = new TerminalSession({
      connect: this.#options.connect,
      id,
      ...(cwd === undefined ? {} : { cwd }),
      screen: {
        get cols() {
          return terminal.cols;
        },
        get rows() {
          return terminal.rows;
        },
        write: (data, drawn) => terminal.write(data, drawn),
        reset: () => terminal.reset(),
      },
      onId: (made) => this.#options.onId(made),
      onStatus: (status) => {
        this.status.set(status);
        if (status.kind === "waiting" || status.kind === "held") this.#options.onLost();
        if (status.kind === "exited" || status.kind === "failed") {
          const why =
            status.kind === "failed"
              ? status.message
              : status.status === null
                ? "The process has ended."
                : `The process has ended with status ${status.status}.`;
          terminal.write(`\r\n\x1b[2m${why} Press Enter for a new shell.\x1b[0m\r\n`);
        }
      },
    });
    session.start();
    return session;
  }

  /** Takes the size of the page's place for it; a hidden one has none. */
  fit(): void {
    const size = this.#fit.proposeDimensions();
    if (size && size.cols > 1 && size.rows > 0 && Number.isFinite(size.cols)) this.#fit.fit();
  }

  focus(): void {
    this.terminal.focus();
  }

  retry(): void {
    this.#session.retryNow();
  }

  hold(): void {
    this.#session.hold();
  }

  release(): void {
    this.#session.release();
  }

  paste(text: string): void {
    this.terminal.paste(text);
  }

  dispose(): void {
    this.#undo.dispose();
  }

  #key(event: KeyboardEvent): boolean {
    if (event.type !== "keydown") return true;
    const { kind } = this.status.value;
    if (event.key === "Enter" && (kind === "exited" || kind === "failed")) {
      event.preventDefault();
      this.#session.dispose();
      this.terminal.reset();
      this.#session = this.#begin(null);
      return false;
    }
    if (!event.ctrlKey || !event.shiftKey) return true;
    if (event.code === "KeyC") {
      event.preventDefault();
      const selection = this.terminal.getSelection();
      if (selection) void copy(selection).then(() => this.focus());
      return false;
    }
    // The browser's own paste event follows, which xterm.js takes: no permission has to be asked.
    return event.code !== "KeyV";
  }
}
