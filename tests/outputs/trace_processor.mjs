// Runs the trace processor of a Perfetto UI (its WebAssembly engine) under Node, as a filter:
//
//     node trace_processor.mjs FOLDER_OF_THE_UI < requests > replies
//
// Requests and replies are streams of TraceProcessorRpcStream messages. The engine is written for a web worker:
// it is given the few globals it asks for, and a port in place of the page's.

import { readFileSync, readSync, writeSync } from "node:fs";
import { join } from "node:path";

const CHUNK = 1 << 20;
const folder = process.argv[2];

class FileRequest {
  open(_method, name) {
    this.name = name;
  }

  send() {
    this.response = readFileSync(join(folder, this.name.split("/").pop()));
  }
}

function writeAll(bytes) {
  for (let done = 0; done < bytes.length; ) {
    try {
      done += writeSync(1, bytes, done);
    } catch (error) {
      if (error.code !== "EAGAIN") throw error;
    }
  }
}

function* standardInput() {
  for (;;) {
    const chunk = new Uint8Array(CHUNK);
    const size = readSync(0, chunk, 0, CHUNK, null);
    if (size === 0) return;
    yield chunk.subarray(0, size);
  }
}

const port = { onmessage: null, postMessage: writeAll };
const self = { location: { href: "http://localhost/engine_bundle.js" } };
const scope = {
  self,
  console: { log: console.error, warn: console.error, error: console.error },
  importScripts() {},
  process: undefined, // it refuses to run under Node
  WorkerGlobalScope: Object,
  XMLHttpRequest: FileRequest,
};
// a function, and not a context of its own, so that both sides mean the same Uint8Array and TypeError
const engine = new Function(...Object.keys(scope), readFileSync(join(folder, "engine_bundle.js"), "utf8"));
engine(...Object.values(scope));
self.onmessage({ data: port });

// the engine is ready when it has taken the port and its start-up promises have run
setTimeout(() => {
  for (const chunk of standardInput()) port.onmessage({ data: chunk });
}, 0);
