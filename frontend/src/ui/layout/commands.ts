/** What can be done in a workspace, by name: from the palette, and by keys. */
import type { Command } from "../../core/commands";
import { type Act, acts } from "../../core/lifecycle";
import { switchTheme } from "../page";
import type { WorkspaceModel } from "./model";

/** What can be done with the machine, as commands. */
const MACHINE: readonly [Act, string][] = [
  ["rename", "Rename the workspace…"],
  ["suspend", "Suspend the machine"],
  ["resume", "Resume the machine"],
  ["fork", "Fork the machine…"],
  ["snapshot", "Keep the machine as a snapshot…"],
  ["extend", "Give the machine more time…"],
  ["stop", "Stop the machine…"],
  ["start", "Start the machine"],
  ["details", "Details and timeline of the machine"],
  ["delete", "Delete the machine…"],
];

export function workspaceCommands(model: WorkspaceModel): Command[] {
  const running = () => model.sandbox.value?.state === "running";
  const text = () => running() && model.documents.active?.kind === "text";
  const active = () => model.documents.active;
  return [
    {
      id: "palette",
      group: "Go",
      title: "Show all commands",
      keys: "F1 or Ctrl+K",
      inTerminal: "F1",
      when: () => !model.palette.value,
      run: () => model.palette.set(true),
    },
    {
      id: "help",
      group: "Go",
      title: "Keyboard shortcuts",
      keys: "Shift+F1",
      inTerminal: "Shift+F1",
      run: () => model.help.set(true),
    },
    {
      id: "next-area",
      group: "Go",
      title: "Next area",
      keys: "F6",
      inTerminal: "F6",
      run: () => model.nextArea(),
    },
    {
      id: "files",
      group: "Go",
      title: "Go to the files",
      keys: "Alt+1",
      inTerminal: "Alt+1",
      run: () => model.focus("files"),
    },
    {
      id: "editor",
      group: "Go",
      title: "Go to the editor",
      keys: "Alt+2",
      inTerminal: "Alt+2",
      run: () => model.focus("editor"),
    },
    {
      id: "terminal",
      group: "Go",
      title: "Go to the terminal",
      keys: "Alt+3",
      inTerminal: "Alt+3",
      run: () => model.focus("terminal"),
    },
    { id: "dashboard", group: "Go", title: "To all sandboxes", run: () => location.assign("/") },
    {
      id: "save",
      group: "File",
      title: "Save",
      keys: "Ctrl+S",
      when: text,
      run: () => void model.save(active()?.path ?? ""),
    },
    {
      id: "save-all",
      group: "File",
      title: "Save all",
      keys: "Ctrl+Alt+S",
      when: () => running() && model.documents.dirty.length > 0,
      run: () => {
        for (const { path } of model.documents.dirty) void model.save(path);
      },
    },
    {
      id: "close",
      group: "File",
      title: "Close the file",
      keys: "Alt+W",
      when: () => !!active(),
      run: () => model.askClose(active()?.path ?? ""),
    },
    {
      id: "next",
      group: "File",
      title: "Next file",
      keys: "Alt+PageDown",
      when: () => !!active(),
      run: () => model.documents.cycle(1),
    },
    {
      id: "previous",
      group: "File",
      title: "Previous file",
      keys: "Alt+PageUp",
      when: () => !!active(),
      run: () => model.documents.cycle(-1),
    },
    {
      id: "reveal",
      group: "File",
      title: "Show the file in the tree",
      when: () => !!active(),
      run: () => void model.tree.reveal(active()?.path ?? "").then(() => model.focus("files")),
    },
    {
      id: "reread",
      group: "File",
      title: "Read the file again",
      when: () => text() && !active()?.dirty,
      run: () => void model.documents.reload(active()?.path ?? ""),
    },
    {
      id: "download",
      group: "File",
      title: "Download the file",
      when: () => running() && !!active(),
      run: () => model.download(active()?.path ?? "", false),
    },
    {
      id: "new-file",
      group: "Files",
      title: "New file…",
      when: running,
      run: () => model.beginCreate("file"),
    },
    {
      id: "new-folder",
      group: "Files",
      title: "New folder…",
      when: running,
      run: () => model.beginCreate("folder"),
    },
    { id: "upload", group: "Files", title: "Upload files…", when: running, run: () => model.pickUpload() },
    {
      id: "archive",
      group: "Files",
      title: "Download all as .tar.gz",
      when: running,
      run: () => model.download(model.tree.state.value.root, true),
    },
    {
      id: "hidden",
      group: "Files",
      title: "Show or hide hidden files",
      run: () => model.tree.toggleHidden(),
    },
    {
      id: "toggle-files",
      group: "View",
      title: "Show or hide the files",
      keys: "Ctrl+B",
      run: () => model.filesShown.update((shown) => !shown),
    },
    {
      id: "toggle-terminal",
      group: "View",
      title: "Show or hide the terminals",
      keys: "Ctrl+J",
      run: () => model.terminalShown.update((shown) => !shown),
    },
    { id: "theme", group: "View", title: "Switch between dark and light", run: switchTheme },
    {
      id: "new-terminal",
      group: "Terminal",
      title: "New terminal",
      keys: "Alt+Shift+T",
      inTerminal: "Alt+Shift+T",
      when: running,
      run: () => model.newTerminal(),
    },
    {
      id: "next-terminal",
      group: "Terminal",
      title: "Next terminal",
      keys: "Alt+Shift+N",
      inTerminal: "Alt+Shift+N",
      run: () => {
        model.focusTerminal = true;
        model.terminals.cycle(1);
      },
    },
    {
      id: "close-terminal",
      group: "Terminal",
      title: "End the terminal…",
      keys: "Alt+Shift+W",
      inTerminal: "Alt+Shift+W",
      when: () => model.terminals.state.value.tabs.length > 0,
      run: () => model.askCloseTerminal(model.terminals.state.value.active),
    },
    {
      id: "find-terminal",
      group: "Terminal",
      title: "Find in the terminal",
      keys: "Ctrl+Shift+F",
      inTerminal: "Ctrl+Shift+F",
      run: () => model.findInTerminal(),
    },
    {
      id: "network",
      group: "Machine",
      title: "Network of the machine: what it may reach, and reached",
      run: () => window.open(`/sandboxes/${model.id}/details#network`, "_blank", "noopener"),
    },
    ...MACHINE.map(([act, title]) => ({
      id: act,
      group: "Machine",
      title,
      when: () => !!model.sandbox.value && acts(model.sandbox.value, model.may).includes(act),
      run: () => model.act(act),
    })),
  ];
}
