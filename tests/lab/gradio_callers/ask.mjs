// Asks a Space as @gradio/client does: calls as JSON on stdin, what became of each as JSON on stdout.
//     node ask.mjs CLIENT_MODULE URL [TOKEN]
import { readFileSync } from "node:fs";

const [module, url, token] = process.argv.slice(2);
const { Client } = await import(module);
console.error = console.warn = () => {};

async function ask(client, { name, data, cancel_after }) {
	const outputs = [];
	try {
		if (cancel_after === undefined) {
			const { data: result } = await client.predict(name, data);
			return { result };
		}
		const job = client.submit(name, data);
		let stage;
		for await (const event of job) {
			if (event.type === "status") stage = event.stage;
			if (event.type === "data" && outputs.push(event.data) === cancel_after) await job.cancel();
		}
		return { outputs, stage };
	} catch (error) {
		return { error: error.message, kind: error.constructor.name, title: error.title };
	}
}

const answers = [];
try {
	const client = await Client.connect(url, { token, events: ["data", "status"] });
	for (const call of JSON.parse(readFileSync(0))) answers.push(await ask(client, call));
} catch (error) {
	answers.push({ error: error.message, kind: error.constructor.name });
}
console.log(JSON.stringify(answers));
process.exit(0);
