import { expect, test } from "vitest";
import { TerminalTabs } from "./terminals";

function memory(text: string | null = null) {
  return {
    text,
    load() {
      return this.text;
    },
    save(next: string) {
      this.text = next;
    },
  };
}

test("a first visit begins one terminal, a reload comes back to those that still run", () => {
  const kept = memory();
  const first = new TerminalTabs(kept);
  first.restore([]);
  const [tab] = first.state.value.tabs;
  if (!tab) throw new Error("no tab");
  first.named(tab.key, "t1");
  first.named(first.open().key, "t2");
  first.named(first.open().key, "t3");
  first.show(tab.key);

  const again = new TerminalTabs(kept);
  again.restore([
    { id: "t3", title: "bash" },
    { id: "t1", title: "vim" },
    { id: "other", title: "of somebody else" },
  ]);
  expect(again.state.value.tabs.map(({ id }) => id)).toEqual(["t1", "t3"]);
  expect(again.state.value.active).toBe(again.state.value.tabs[0]?.key);
});

test("the first visit to a fork shows every terminal of its original, and only the first", () => {
  const kept = memory();
  const running = [
    { id: "t1", title: "bash" },
    { id: "t2", title: "vim" },
  ];
  const fork = new TerminalTabs(kept);
  fork.restore(running, true);
  expect(fork.state.value.tabs.map(({ id }) => id)).toEqual(["t1", "t2"]);
  fork.close(fork.state.value.tabs[0]?.key ?? 0);
  const again = new TerminalTabs(kept);
  again.restore(running, true);
  expect(again.state.value.tabs.map(({ id }) => id)).toEqual(["t2"]);
});

test("what was remembered and makes no sense begins anew", () => {
  const tabs = new TerminalTabs(memory("{broken"));
  tabs.restore([]);
  expect(tabs.state.value.tabs.length).toBe(1);
});

test("closing shows the neighbour", () => {
  const tabs = new TerminalTabs(memory());
  const keys = [tabs.open(), tabs.open(), tabs.open()].map(({ key }) => key);
  tabs.show(keys[1] ?? 0);
  tabs.close(keys[1] ?? 0);
  expect(tabs.state.value.active).toBe(keys[2]);
  tabs.cycle(1);
  expect(tabs.state.value.active).toBe(keys[0]);
});
