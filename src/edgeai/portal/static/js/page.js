// Every page's script: what it starts is there or not, by what the page contains.
import "./theme.js";
import "./keys.js";
import { start } from "./live.js";
import { startActions } from "./actions.js";
import { startPlots } from "./plots.js";
import { startInference } from "./inference.js";
import { startCounts } from "./counts.js";
import { startEvents } from "./events.js";
import { startLog } from "./log.js";
import { startApply } from "./apply.js";
import { startTokens } from "./tokens.js";

startActions();
startPlots();
startInference();
startCounts();
startEvents();
startLog();
startApply();
startTokens();
start();
