import { expect, test } from "vitest";
import {
  added,
  advice,
  type Connection,
  type Denial,
  draftOf,
  lineNumbers,
  merged,
  patterns,
  place,
  policyOf,
  same,
  unitOf,
  waits,
  why,
} from "./network";

const connection = (number: number) => ({ number }) as Connection;
const denial = (remedy: Denial["remedy"], host = "a.example") =>
  ({ remedy, host, rule: "*.example" }) as Denial;

test("a draft says the policy it was made of, and no list is not an empty one", () => {
  for (const policy of [
    { allow_net: null, deny_net: [], ask_net: false },
    { allow_net: [], deny_net: ["b.example"], ask_net: true },
    { allow_net: ["a.example:443", "*.example"], deny_net: [], ask_net: false },
  ])
    expect(policyOf(draftOf(policy))).toEqual(policy);
});

test("empty lines and spaces mean nothing, and a problem is told by its line", () => {
  const text = "\n a.example \n\nb.example\n";
  expect(patterns(text)).toEqual(["a.example", "b.example"]);
  expect(lineNumbers(text)).toEqual([2, 4]);
  expect(added(text, ["b.example", "c.example"])).toBe("a.example\nb.example\nc.example");
  expect(
    same(
      { listed: true, ask: false, allow: text, deny: "" },
      { listed: true, ask: false, allow: "a.example\nb.example", deny: " " },
    ),
  ).toBe(true);
  expect(
    same(
      { listed: false, ask: false, allow: "x", deny: "" },
      { listed: false, ask: false, allow: "", deny: "" },
    ),
  ).toBe(true);
  expect(
    same(
      { listed: true, ask: false, allow: "", deny: "" },
      { listed: false, ask: false, allow: "", deny: "" },
    ),
  ).toBe(false);
});

test("connections come together newest first, each once, and not without end", () => {
  const list = merged([connection(3), connection(2)], [connection(4), connection(3)], 3);
  expect(list.map(({ number }) => number)).toEqual([4, 3, 2]);
  expect(merged(list, [connection(5)], 3).map(({ number }) => number)).toEqual([5, 4, 3]);
});

test("who can do something about a denial is told what, and nobody else is sent on an errand", () => {
  const may = new Set(["sandbox.network"]);
  expect(advice(denial("allow"), may)).toBe("");
  expect(advice(denial("allow"), new Set())).toContain("Somebody who may");
  expect(advice(denial("organization_rule"), may)).toContain("*.example");
  expect(advice(denial("", ""), may)).toBe("");
});

test("places and units", () => {
  expect(place({ host: "2001:db8::1", port: 443 })).toBe("[2001:db8::1]:443");
  expect(unitOf([0, 5_000_000]).unit).toBe("MB");
  expect(unitOf([]).unit).toBe("bytes");
});

test("a reason is a sentence, and a host in it stays as it is spelled", () => {
  expect(why("a.example:443 is denied")).toBe("a.example:443 is denied.");
  expect(why("It is.")).toBe("It is.");
  expect(why("")).toBe("");
});

test("a connection waits for an answer until its time is up", () => {
  const at = (time: string | null) => ({ waits_until: time }) as Denial;
  const now = Date.parse("2026-11-25T20:00:00Z");
  expect(waits(at("2026-11-25T20:00:01Z"), now)).toBe(true);
  expect(waits(at("2026-11-25T19:59:59Z"), now)).toBe(false);
  expect(waits(at(null), now)).toBe(false);
});
