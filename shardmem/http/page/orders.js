// The commands: what each will do, in words; what the user is asked; the same for a shell; and what was done.

import {exact, plural, span} from "./words.js";

const active = document => document.shards.filter(each => each.state === "active");
/** What scale is told and counts from: one that failed is still one of them; shard_count of status/findings. */
const counted = document => document.shards.filter(each => each.state === "active" || each.state === "failed").length;
const milli = s => (s < 1 ? `${(1000 * s).toFixed(0)} ms` : span(s));
const quoted = text => (/^[\w,.:/-]+$/.test(text) ? text : `'${text}'`);
const told = (...parts) => parts.filter(Boolean).join(" ");
const listed = (...parts) => parts.filter(Boolean).join("; ");
const some = values => (values.ids ? plural(values.ids.length, "event") : "every event");
const onShard = document => active(document).map(each => [each.id, `shard ${each.id}, ${plural(each.slots, "slot")}`]);

/** Of a source: all of it, or the partitions that are named. */
const fed = values => (values.partitions?.length ? values.partitions.join(", ") : `source ${values.source}`);
const sourceBody = values => ({
  source: values.source,
  ...(values.partitions?.length ? {partitions: values.partitions} : {}),
});
const sourceFlags = values =>
  [...(values.partitions || []).map(each => ` --partition ${quoted(each)}`), ` --source ${values.source}`].join("");

/** What was done, from the answer to a command that moves slots. */
function moves(done) {
  const ways = new Map();
  for (const each of done.moved) {
    const way = `${each.from} to shard ${each.to}`;
    ways.set(way, (ways.get(way) || 0) + 1);
  }
  return listed(
    ...[...ways].map(([way, count]) => `${plural(count, "slot")} went from shard ${way}`),
    done.moved.length ? "" : "no slot had to move",
    `it took ${milli(done.seconds.total)}`,
    ...done.late.map(text => `late: ${text}`),
  );
}

/** What stands, from the answer to a command that moves nothing. */
const placed = done =>
  listed(
    done.cordoned.length ? `cordoned: ${done.cordoned.join(", ")}` : "no shard is cordoned",
    ...done.pins.map(each => `pinned to shard ${each.shard}: ${each.slots}`),
    done.suspended ? "moves are suspended" : "the strategy may move slots",
  );

/** An answer at the deadline: who is waited for. */
export const late = answer =>
  listed("it goes on in the background", ...answer.waiting_for.map(each => `waiting for ${each.text}`));

const replaced = each =>
  each.from === each.to ? `shard ${each.from} was started again` : `shard ${each.from} was replaced by shard ${each.to}`;

/** title, verb: of the dialog and of its button. fields: what is asked. says: what will happen. body: what is sent. shell: its
    arguments after `shardmem`. done: the answer in words. */
export const ORDERS = {
  scale: {
    title: "Change the number of shards",
    button: "Scale …",
    path: "scale",
    verb: values => `Run ${plural(Number(values.shards), "shard")}`,
    fields: (document, preset) => [
      {
        name: "shards",
        label: "Number of shards",
        type: "number",
        min: 1,
        max: Math.min(document.engine.max_shards, document.engine.slots),
        value: preset.shards ?? counted(document),
      },
    ],
    says: (values, document) => {
      const now = counted(document),
        more = Number(values.shards) - now;
      return told(
        more > 0 && `${plural(more, "worker")} will be started, and slots move to ${more === 1 ? "it" : "them"}.`,
        more < 0 &&
          `The slots of ${plural(-more, "shard")} go to the others, then ${more === -1 ? "it is" : "they are"} removed.`,
        more === 0 && "As many as there are now: slots are evened out.",
        "Events keep flowing; none is lost or reordered.",
        document.auto_scale && "From then on the policy does not change the number, until you hand it back.",
      );
    },
    body: values => ({shards: Number(values.shards)}),
    shell: (values, name) => `scale ${name} ${Number(values.shards)}`,
    done: answer =>
      listed(`${plural(answer.shards.length, "shard runs", "shards run")}: ${answer.shards.join(", ")}`, moves(answer)),
  },
  auto: {
    title: "Let the policy scale",
    button: "Scale automatically …",
    path: "scale",
    verb: () => "Let the policy scale",
    says: () =>
      told(
        "The policy decides on the number of shards from now on, by how busy they are and how full their lanes are.",
        "It gives its reason for every change.",
      ),
    body: () => ({shards: "auto"}),
    shell: (values, name) => `scale ${name} auto`,
    done: () => "the policy decides on the number of shards",
  },
  drain: {
    title: "Drain a shard",
    button: "Drain …",
    path: "drain",
    verb: values => `Drain shard ${values.shard}`,
    fields: (document, preset) => [{name: "shard", label: "Shard", options: onShard(document), value: preset.shard}],
    says: (values, document) => {
      const shard = document.shards.find(each => String(each.id) === String(values.shard));
      return told(
        shard && `Its ${plural(shard.slots, "slot goes", "slots go")} to the other shards, what is in its lanes is handled,`,
        shard && "then its worker ends and the shard is removed. Nothing is lost or reordered.",
        document.auto_scale && "The policy may add another one later.",
      );
    },
    body: values => ({shard: Number(values.shard)}),
    shell: (values, name) => `drain ${name} ${values.shard}`,
    done: answer => listed(`shard ${answer.drained} is drained and removed`, moves(answer)),
  },
  move: {
    title: "Move slots",
    button: "Move slots …",
    path: "move",
    verb: () => "Move them",
    fields: (document, preset) => [
      {
        name: "slots",
        label: "Slots, like 17,40-60",
        type: "text",
        pattern: "[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*",
        value: preset.slots ?? "",
      },
      {name: "to", label: "To", options: onShard(document), value: preset.to},
    ],
    says: (values, document) =>
      told(
        `They are handed over to shard ${values.to} while events flow: what is in the lanes of the old owner is handled first,`,
        "so nothing is lost, repeated or reordered.",
        document.auto_scale && "The strategy may move them on when the load asks for it.",
      ),
    body: values => ({slots: values.slots, to: Number(values.to)}),
    shell: (values, name) => `move ${name} ${quoted(values.slots || "SLOTS")} --to ${values.to}`,
    done: moves,
  },
  cordon: {
    title: "Cordon a shard",
    path: "cordon",
    verb: values => `Cordon shard ${values.shard}`,
    fields: (document, preset) => [{name: "shard", label: "Shard", options: onShard(document), value: preset.shard}],
    says: () => "It takes no more slots and no events without a key, and keeps what it has, until it is uncordoned or drained.",
    body: values => ({shard: Number(values.shard)}),
    shell: (values, name) => `cordon ${name} ${values.shard}`,
    done: placed,
  },
  uncordon: {
    title: "Uncordon a shard",
    path: "uncordon",
    verb: values => `Uncordon shard ${values.shard}`,
    fields: (document, preset) => [
      {
        name: "shard",
        label: "Shard",
        options: document.cordoned.map(shard => [shard, `shard ${shard}`]),
        value: preset.shard,
      },
    ],
    says: () => "It takes slots and events without a key again.",
    body: values => ({shard: Number(values.shard)}),
    shell: (values, name) => `uncordon ${name} ${values.shard}`,
    done: placed,
  },
  moves: {
    title: "Let slots follow the load",
    path: "moves",
    verb: () => "Resume moves",
    says: () => "The strategy moves slots by itself again, as the load asks for.",
    body: () => ({suspended: false}),
    shell: (values, name) => `moves ${name} resume`,
    done: placed,
  },
  rebalance: {
    title: "Even out the slots",
    button: "Rebalance …",
    path: "rebalance",
    verb: () => "Rebalance",
    says: () => "As few slots as possible are moved until the load of the shards is even. Events keep flowing.",
    body: () => ({}),
    shell: (values, name) => `rebalance ${name}`,
    done: moves,
  },
  reload: {
    title: "Replace the workers",
    button: "Reload …",
    path: "reload",
    verb: () => "Replace all workers",
    says: () =>
      told(
        "The configuration is read again, and every worker is replaced by a new one, one after the other, without a pause.",
        "Failed shards are started again. If one cannot start, the others stay as they are.",
      ),
    body: () => ({}),
    shell: (values, name) => `reload ${name}`,
    done: answer =>
      listed(
        answer.reloaded.map(replaced).join(", "),
        answer.not_applied.length && `these cannot change while the engine runs: ${answer.not_applied.join(", ")}`,
        `it took ${milli(answer.seconds.total)}`,
      ),
  },
  stop: {
    danger: true,
    title: "Stop the engine",
    button: "Stop …",
    path: "stop",
    verb: values => (values.now ? "Stop now" : "Drain and stop"),
    fields: (document, preset) => [
      {name: "now", label: "Do not drain: leave what is not handled in shared memory", type: "checkbox", value: preset.now},
    ],
    says: (values, document) => {
      const left = exact(document.accounting.in_flight);
      return told(
        values.now &&
          `Workers end after the batch in hand. The ${left} events in flight stay in shared memory for the next run.`,
        !values.now && `Nothing is accepted from now on. The ${left} events in flight are handled, then the engine ends.`,
        "Producers wait, or are refused, until somebody runs it again; then they attach by themselves.",
        "This page cannot start it, and goes with it.",
      );
    },
    body: values => (values.now ? {now: true} : {}),
    shell: (values, name) => `stop ${name}${values.now ? " --now" : ""}`,
    done: () => "the engine is stopping",
  },
  "source/pause": {
    title: "Pause a source",
    path: "source/pause",
    verb: values => `Pause ${fed(values)}`,
    says: values =>
      told(
        `Nothing more is read of ${fed(values)} until it is resumed; what was read is handled and committed.`,
        "It holds for the next run of the engine, too.",
      ),
    body: sourceBody,
    shell: (values, name) => `source pause ${name}${sourceFlags(values)}`,
    done: answer => `${fed(answer)} ${answer.partitions.length > 1 ? "are" : "is"} paused`,
  },
  "source/resume": {
    title: "Resume a source",
    path: "source/resume",
    verb: values => `Resume ${fed(values)}`,
    says: () => "It goes on where it was paused.",
    body: sourceBody,
    shell: (values, name) => `source resume ${name}${sourceFlags(values)}`,
    done: answer => listed(`${fed(answer)} ${answer.partitions.length > 1 ? "go" : "goes"} on`, answer.alive ? "" : "when its process runs"),
  },
  "source/seek": {
    danger: true,
    title: "Go on elsewhere in a partition",
    path: "source/seek",
    verb: values => `Go on at ${values.to || "…"}`,
    fields: (document, preset) => [
      {
        name: "to",
        label: `Of ${preset.partition}: start, end, or an offset`,
        type: "text",
        pattern: "start|end|[0-9]{1,18}",
        value: preset.to ?? "",
      },
    ],
    says: values =>
      told(
        `What was pushed of ${values.partition} is handled first. Events before the place are not taken back;`,
        "those behind it come again, and those that are passed over do not come.",
      ),
    body: values => ({
      source: values.source,
      partition: values.partition,
      to: /^[0-9]+$/.test(values.to) ? Number(values.to) : values.to,
    }),
    shell: (values, name) => `source seek ${name} ${quoted(values.partition)} ${values.to || "TO"} --source ${values.source}`,
    done: answer => `${answer.partition} goes on at ${exact(answer.offset)}`,
  },
  replay: {
    title: "Replay events",
    path: "quarantine/replay",
    verb: values => `Replay ${some(values)}`,
    says: values =>
      told(
        values.ids ? plural(values.ids.length, "event") : "Every event that was not replayed",
        "will be pushed again, as new: behind newer events of their keys.",
        "Fix the handler first, or they fail again.",
      ),
    body: values => (values.ids ? {ids: values.ids} : {all: true}),
    shell: (values, name) => `quarantine replay ${name} ${values.ids ? values.ids.join(" ") : "--all"}`,
    done: answer =>
      listed(
        `${plural(answer.replayed.length, "event")} replayed`,
        answer.left.length && `${plural(answer.left.length, "event stays", "events stay")}: ${answer.why}`,
      ),
  },
  purge: {
    danger: true,
    title: "Purge events",
    path: "quarantine/purge",
    verb: values => `Purge ${some(values)}`,
    says: values =>
      told(
        values.ids ? plural(values.ids.length, "event") : "Every event in quarantine, including replayed ones,",
        "will be deleted permanently. This cannot be undone.",
      ),
    body: values => (values.ids ? {ids: values.ids} : {all: true}),
    shell: (values, name) => `quarantine purge ${name} ${values.ids ? values.ids.join(" ") : "--all"}`,
    done: answer => `${plural(answer.purged, "event")} purged`,
  },
};
