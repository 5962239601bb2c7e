// A client that is generated from the OpenAPI document: creates a collection, writes, searches, searches
// a batch, deletes, and is told of an error. Arguments: the gateway's URL and a key.
import createClient from "openapi-fetch";
import type { components, paths } from "./vicinage.js";

declare const process: { argv: string[] };
type Line = components["schemas"]["SearchBatchAnswer"] | components["schemas"]["SearchBatchProblem"];

const [baseUrl, key] = process.argv.slice(2);
const client = createClient<paths>({ baseUrl, headers: { Authorization: `Bearer ${key}` } });
const path = { collection: "typed" };

function check(holds: boolean, what: string): asserts holds {
  if (!holds) throw new Error(what);
}

const made = await client.POST("/v1/collections", { body: { name: "typed", dimension: 4, metric: "cosine" } });
check(made.data?.dimension === 4, "the collection was not created");

const written = await client.POST("/v1/collections/{collection}/documents", {
  params: { path },
  body: {
    documents: [
      { id: "a", vector: [1, 0, 0, 0], text: "words", metadata: { lang: "en" } },
      { id: "b/c", vector: [0, 1, 0, 0] },
    ],
  },
});
check(written.data?.accepted === 2, "the documents were not accepted");
const token: string | null = written.data.token;
check(token !== null, "a write has a token");

const found = await client.POST("/v1/collections/{collection}/search", {
  params: { path },
  body: { vector: [1, 0, 0, 0], k: 1, filter: { $and: [{ lang: "en" }] }, wait_for: token },
});
check(found.data?.hits[0]?.document_id === "a", "the search did not find the document");
check(found.data.hits[0].text === "words", "the hit has no text");

const batch = await client.POST("/v1/collections/{collection}/search:batch", {
  params: { path },
  body: { searches: [{ vector: [0, 1, 0, 0], k: 1 }, { text: "words", mode: "lexical" }] },
  parseAs: "text",
});
check(batch.data !== undefined, "the batch has no answer");
const lines: Line[] = batch.data.trim().split("\n").map((line) => JSON.parse(line));
check(lines.length === 2, "a batch has a line for each search");
const first = lines.find((line) => line.index === 0);
check(first !== undefined && "hits" in first, "the first search has an answer");
check(first.hits[0]?.document_id === "b/c", "the batch did not find the document");

const read = await client.GET("/v1/collections/{collection}/documents/{document_id}", {
  params: { path: { ...path, document_id: "b/c" } },
});
check(read.data?.passages.length === 1, "the document was not read");

const deleted = await client.POST("/v1/collections/{collection}/documents:delete", {
  params: { path },
  body: { ids: ["a", "b/c"] },
});
check(deleted.data?.accepted === 2, "the deletion was not accepted");

const gone = await client.DELETE("/v1/collections/{collection}", {
  params: { path, query: { confirm: "typed" } },
});
check(gone.data?.deleted === "typed", "the collection was not deleted");

const refused = await client.GET("/v1/collections/{collection}", { params: { path } });
check(refused.error?.type === "urn:vicinage:problem:not-found", "the error is not typed");
console.log("done");
