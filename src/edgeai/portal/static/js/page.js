// Every page's script: what it starts is there or not, by what the page contains.
import "./theme.js";
import "./keys.js";
import { start } from "./live.js";
import { startActions } from "./actions.js";
import { startPlots } from "./plots.js";
import { startEvents } from "./events.js";
import { startLog } from "./log.js";
import { startApply } from "./apply.js";

startActions();
startPlots();
startEvents();
startLog();
startApply();
start();
