// What every JavaScript host has, browser or not. core/ and xterm_bridge/ are compiled without the DOM, so that
// nothing in them can come to depend on a page.
declare function setTimeout(run: () => void, milliseconds?: number): number;
declare function clearTimeout(handle: number | undefined): void;
declare function setInterval(run: () => void, milliseconds?: number): number;
declare function clearInterval(handle: number | undefined): void;
declare function atob(data: string): string;
declare function btoa(data: string): string;
declare class TextEncoder {
  encode(text: string): Uint8Array<ArrayBuffer>;
}
declare class TextDecoder {
  constructor(label?: string, options?: { fatal?: boolean; ignoreBOM?: boolean });
  decode(data?: Uint8Array): string;
}
