import { describe, expect, it } from "vitest";
import { hostsOf, meantFor, nameProblem, putInto } from "./secrets";

describe("secrets in words", () => {
  it("says where one is put, in the order of the form", () => {
    expect(putInto([])).toBe("Headers");
    expect(putInto(["body"])).toBe("Headers and body");
    expect(putInto(["body", "query"])).toBe("Headers, query and body");
    expect(putInto(["body", "path", "query"])).toBe("Headers, query, path and body");
  });

  it("reads hosts however they are separated, each once", () => {
    expect(hostsOf(" api.example.com,\n*.example.org:8443  api.example.com ")).toEqual([
      "api.example.com",
      "*.example.org:8443",
    ]);
    expect(hostsOf(" ,\n")).toEqual([]);
  });

  it("tells a name that no environment could have", () => {
    for (const name of ["", "A", "_x", "OPENAI_API_KEY", "a".repeat(128)]) expect(nameProblem(name)).toBe("");
    for (const name of ["1A", "A-B", "A B", "É", "a".repeat(129)]) expect(nameProblem(name)).not.toBe("");
  });

  it("says which sandboxes get one", () => {
    expect(meantFor({})).toBe("Every sandbox");
    expect(meantFor({ team: "sea", gpu: "" })).toBe("Those labelled team: sea, gpu");
  });
});
