/** The open texts as CodeMirror states, one per file; the one editor view shows one of them. */
import {
  autocompletion,
  closeBrackets,
  closeBracketsKeymap,
  completionKeymap,
} from "@codemirror/autocomplete";
import { defaultKeymap, history, historyKeymap, indentWithTab } from "@codemirror/commands";
import {
  bracketMatching,
  foldGutter,
  foldKeymap,
  indentOnInput,
  indentUnit,
  LanguageDescription,
} from "@codemirror/language";
import { languages } from "@codemirror/language-data";
import { highlightSelectionMatches, search, searchKeymap } from "@codemirror/search";
import { Compartment, EditorState, type Extension, type Text } from "@codemirror/state";
import {
  crosshairCursor,
  drawSelection,
  dropCursor,
  EditorView,
  highlightActiveLine,
  highlightActiveLineGutter,
  highlightSpecialChars,
  keymap,
  lineNumbers,
  rectangularSelection,
} from "@codemirror/view";
import type { Texts } from "../../core/documents";
import { base } from "../../core/paths";
import { Store } from "../../core/store";
import { editorLook } from "./theme";

export interface Cursor {
  line: number;
  column: number;
  selected: number;
  language: string;
}

/**
 * Only \n ends a line, so that the line ends of a mixed file stay as they are: the editor shows other ends as
 * characters. What is pasted comes with the line ends of the person's system, and takes those of the text.
 */
export const lineEnds: Extension = [
  EditorState.lineSeparator.of("\n"),
  EditorView.clipboardInputFilter.of((text) => text.replace(/\r\n?/g, "\n")),
];

/** The file's own habit of indenting: tabs, or the smallest step seen. */
export function indentOf(text: string): string {
  let spaces = Number.POSITIVE_INFINITY;
  let tabs = 0;
  let lines = 0;
  for (const match of text.slice(0, 50_000).matchAll(/^([ \t]+)\S/gm)) {
    const lead = match[1] ?? "";
    if (lead.startsWith("\t")) tabs++;
    else if (lead.length > 1) spaces = Math.min(spaces, lead.length);
    if (++lines > 400) break;
  }
  if (tabs > lines / 2) return "\t";
  return " ".repeat(spaces === 2 ? 2 : 4);
}

export class EditorTexts implements Texts {
  readonly cursor = new Store<Cursor | null>(null);
  onEdited: (path: string, dirty: boolean) => void = () => {};
  #states = new Map<string, EditorState>();
  #saved = new Map<string, Text>();
  #scroll = new Map<string, ReturnType<EditorView["scrollSnapshot"]>>();
  #languages = new Map<string, string>();
  #language = new Compartment();
  #view: EditorView | null = null;
  #shown: string | null = null;

  /** Puts the one view into the page; returns the way to take it out. */
  mount(parent: HTMLElement): () => void {
    const view = new EditorView({ parent, state: EditorState.create({ extensions: this.#extensions("") }) });
    this.#view = view;
    const shown = this.#shown;
    this.#shown = null;
    if (shown) this.show(shown);
    return () => {
      this.#keep();
      this.#view = null;
      view.destroy();
    };
  }

  focus(): void {
    this.#view?.focus();
  }

  show(path: string | null): void {
    if (path === this.#shown) return;
    this.#keep();
    this.#shown = path;
    const state = path === null ? undefined : this.#states.get(path);
    if (!this.#view || !state || path === null) {
      if (path === null) this.cursor.set(null);
      return;
    }
    this.#view.setState(state);
    const scroll = this.#scroll.get(path);
    if (scroll) this.#view.dispatch({ effects: scroll });
    this.#report(state);
  }

  load(path: string, text: string, keep: boolean): void {
    const before = this.#state(path);
    if (keep && before) {
      const old = before.doc.toString();
      let from = 0;
      while (from < old.length && from < text.length && old[from] === text[from]) from++;
      let end = 0;
      while (
        end < old.length - from &&
        end < text.length - from &&
        old[old.length - 1 - end] === text[text.length - 1 - end]
      )
        end++;
      // Marked as saved first, because the change reports whether it differs from that.
      const insert = text.slice(from, text.length - end);
      const change = before.update({ changes: { from, to: old.length - end, insert } });
      this.#saved.set(path, change.state.doc);
      if (path === this.#shown && this.#view) this.#view.dispatch(change);
      else this.#states.set(path, change.state);
      return;
    }
    const state = EditorState.create({ doc: text, extensions: this.#extensions(text) });
    this.#states.set(path, state);
    this.#saved.set(path, state.doc);
    if (path === this.#shown && this.#view) {
      this.#view.setState(state);
      this.#report(state);
    }
    void this.#highlight(path);
  }

  read(path: string): string {
    return this.#state(path)?.doc.toString() ?? "";
  }

  saved(path: string, text: string): void {
    const state = this.#state(path);
    if (!state) return;
    const doc = state.toText(text);
    this.#saved.set(path, doc);
  }

  forget(path: string): void {
    this.#states.delete(path);
    this.#saved.delete(path);
    this.#scroll.delete(path);
    if (this.#shown === path) this.#shown = null;
  }

  rename(from: string, to: string): void {
    this.#keep();
    for (const map of [this.#states, this.#saved, this.#scroll, this.#languages] as Map<string, never>[]) {
      const value = map.get(from);
      if (value === undefined) continue;
      map.delete(from);
      map.set(to, value);
    }
    if (this.#shown === from) this.#shown = to;
    void this.#highlight(to);
  }

  /** Puts another text in the place of the present one, as an edit that can be undone. */
  replace(path: string, text: string): void {
    const state = this.#state(path);
    if (!state) return;
    const change = state.update({ changes: { from: 0, to: state.doc.length, insert: text } });
    if (path === this.#shown && this.#view) this.#view.dispatch(change);
    else this.#states.set(path, change.state);
  }

  /** What another editor (the comparison) needs to show this file alike. */
  async support(path: string): Promise<Extension> {
    const found = LanguageDescription.matchFilename(languages, base(path));
    return found ? await found.load() : [];
  }

  #state(path: string): EditorState | undefined {
    return path === this.#shown && this.#view ? this.#view.state : this.#states.get(path);
  }

  #keep(): void {
    if (this.#shown === null || !this.#view || !this.#states.has(this.#shown)) return;
    this.#states.set(this.#shown, this.#view.state);
    this.#scroll.set(this.#shown, this.#view.scrollSnapshot());
  }

  async #highlight(path: string): Promise<void> {
    const found = LanguageDescription.matchFilename(languages, base(path));
    this.#languages.set(path, found?.name ?? "Plain text");
    if (path === this.#shown && this.#view) this.#report(this.#view.state);
    if (!found) return;
    const effects = this.#language.reconfigure(await found.load());
    const state = this.#state(path);
    if (!state) return;
    if (path === this.#shown && this.#view) this.#view.dispatch({ effects });
    else this.#states.set(path, state.update({ effects }).state);
  }

  #report(state: EditorState): void {
    const { main } = state.selection;
    const line = state.doc.lineAt(main.head);
    this.cursor.set({
      line: line.number,
      column: main.head - line.from + 1,
      selected: main.to - main.from,
      language: this.#languages.get(this.#shown ?? "") ?? "Plain text",
    });
  }

  #extensions(text: string): Extension {
    return [
      lineEnds,
      lineNumbers(),
      foldGutter(),
      highlightActiveLineGutter(),
      highlightActiveLine(),
      highlightSpecialChars(),
      history(),
      drawSelection(),
      dropCursor(),
      EditorState.allowMultipleSelections.of(true),
      indentOnInput(),
      indentUnit.of(indentOf(text)),
      bracketMatching(),
      closeBrackets(),
      autocompletion(),
      rectangularSelection(),
      crosshairCursor(),
      highlightSelectionMatches(),
      search({ top: true }),
      EditorView.contentAttributes.of({ "aria-label": "Editor" }),
      keymap.of([
        ...closeBracketsKeymap,
        ...defaultKeymap,
        ...searchKeymap,
        ...historyKeymap,
        ...foldKeymap,
        ...completionKeymap,
        indentWithTab,
      ]),
      editorLook,
      this.#language.of([]),
      EditorView.updateListener.of((update) => {
        if (update.docChanged && this.#shown !== null) {
          const saved = this.#saved.get(this.#shown);
          this.onEdited(this.#shown, !saved || !update.state.doc.eq(saved));
        }
        if (update.docChanged || update.selectionSet) this.#report(update.state);
      }),
    ];
  }
}
