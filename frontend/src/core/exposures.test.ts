import { describe, expect, it } from "vitest";
import { audience, complete, sshCommand, target } from "./exposures";

describe("exposures in words", () => {
  it("says whom each is for, and where it leads", () => {
    expect(audience({ kind: "http", access: "organization" })).toBe("Members");
    expect(audience({ kind: "ssh", access: "public" })).toBe("whoever has its user name");
    expect(target({ kind: "http", port: 3000, pid: null })).toBe("port 3000");
    expect(target({ kind: "http", port: null, pid: 7 })).toBe("process 7");
    expect(target({ kind: "http", port: null, pid: null })).toBe("nowhere yet");
  });

  it("says the port of SSH where it is not the usual one", () => {
    expect(sshCommand({ host: "a.example", port: 22, user: "sbx" })).toBe("ssh sbx@a.example");
    expect(sshCommand({ host: "a.example", port: 2222, user: "sbx" })).toBe("ssh -p 2222 sbx@a.example");
  });

  it("wants a port, and a password that is long enough", () => {
    const wanted = { port: 80, access: "password" as const, password: "", hours: 24 };
    expect(complete(wanted)).toBe(false);
    expect(complete({ ...wanted, password: "12345678" })).toBe(true);
    expect(complete({ ...wanted, access: "public" })).toBe(true);
    expect(complete({ ...wanted, access: "public", port: 0 })).toBe(false);
    expect(complete({ ...wanted, access: "public", port: 1.5 })).toBe(false);
  });
});
