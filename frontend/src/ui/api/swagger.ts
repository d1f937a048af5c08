/** Swagger UI, which the server brings as a script and a style sheet of its own and which only this page needs. */
import type { DocsConfig } from "../config";

export interface SwaggerRequest {
  method: string;
  headers: Record<string, string>;
}

export interface SwaggerOptions {
  domNode: HTMLElement;
  url: string;
  deepLinking: boolean;
  docExpansion: "none" | "list" | "full";
  filter: boolean;
  tagsSorter: "alpha";
  requestInterceptor: (request: SwaggerRequest) => SwaggerRequest;
}

type Show = (options: SwaggerOptions) => unknown;

declare global {
  interface Window {
    SwaggerUIBundle?: Show;
  }
}

/** What shows a document, once script and style sheet are there. Rejects with a sentence. */
export async function swagger(docs: DocsConfig): Promise<Show> {
  const script = document.createElement("script");
  script.src = docs.script;
  const sheet = document.createElement("link");
  sheet.rel = "stylesheet";
  sheet.href = docs.styles;
  await Promise.all([loaded(sheet), loaded(script)]);
  if (!window.SwaggerUIBundle) throw new Error("Its script is not what it should be.");
  return window.SwaggerUIBundle;
}

function loaded(element: HTMLScriptElement | HTMLLinkElement): Promise<void> {
  return new Promise((resolve, reject) => {
    element.onload = () => resolve();
    element.onerror = () => reject(new Error("The server does not answer."));
    document.head.append(element);
  });
}
