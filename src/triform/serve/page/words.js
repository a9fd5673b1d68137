// What the page says, in English and Chinese.

const WORDS = {
  en: {
    model: "Model", new: "New", settings: "Settings", theme: "Light or dark", close: "Close", send: "Send", stop: "Stop", write: "Write here",
    system: "System prompt", temperature: "Temperature", repetition: "Repetition penalty", longest: "Longest answer", seed: "Seed", stop_at: "Stop at",
    show_tokens: "Show tokens and their probabilities", reset: "Back to the defaults", key: "API key", key_hint: "Kept for this tab only.", api: "The API",
    k_send: "send", k_line: "new line", k_stop: "stop", k_write: "write", all: "all", random: "random",
    copy: "Copy", copied: "Copied", retry: "Again", edit: "Edit", tokens: "Tokens and their probabilities", stopped: "Stopped.",
    hello_chat: "What shall we talk about?", about_chat: "{model} answers on this machine. It can be wrong.",
    hello_write: "Begin a text", about_write: "{model} goes on where you stop.",
    hello_reply: "Give it a text", about_reply: "{model} reads it and writes an answer.",
    hello_fill: "What is missing?", about_fill: "Write [MASK] where {model} shall fill a word in.",
    hello_classify: "What does it say?", about_classify: "{model} judges a text: {labels}.",
    hello_embed: "How alike are they?", about_embed: "{model} compares texts by meaning. One text a line.",
    hello_tag: "Who and what is named?", about_tag: "{model} finds the names in a text.",
    hello_answer: "What would you like to know?", about_answer: "{model} finds the answer in a passage. The question comes first, the passage below it.",
    hello_see: "What is in the picture?", about_see: "{model} judges a picture: {labels}.", write_see: "", ideas_see: [],
    hello_choose: "Which words fit the picture?", about_choose: "Write what the picture may show, one a line, and choose it: {model} tells which fits best.",
    write_choose: "What it may show, one a line", ideas_choose: [], picture: "Choose a picture", no_picture: "This file is no picture that the browser can read.",
    hello_none: "No model is there", about_none: "The server has none that this page can use.",
    write_chat: "Message", write_write: "The beginning of a text", write_reply: "A text", write_fill: "A text with [MASK] in it",
    write_classify: "A text to judge", write_embed: "Two texts or more, one a line",
    write_tag: "A text with names in it", write_answer: "The question, and below it the passage",
    ideas_tag: ["Ada Lovelace lived in London."], ideas_answer: ["Who wrote it?\nDream of the Red Chamber was written by Cao Xueqin."],
    no_passage: "Write the question in the first line and the passage below it.",
    ideas_chat: ["Explain what a Transformer is, to a child", "Write a haiku about autumn rain", "What is 17 times 24?"],
    ideas_write: ["Once upon a time", "却说曹操"], ideas_reply: [], ideas_fill: ["The capital of France is [MASK].", "房间很[MASK]，服务也好。"],
    ideas_classify: ["A wonderful stay, we will come back!", "服务态度太差了。"], ideas_embed: ["A man is playing a guitar.\nSomeone makes music.\nThe stock market fell."],
    figures: "{tokens} tokens · {rate}/s · first after {first}", figures_short: "{tokens} tokens", mask: "Mask {number}",
    cut: "cut off at the longest answer", no_key: "This server wants an API key: put it into the settings.", offline: "The server does not answer. Is it still running?",
    is_working: "Answering", is_done: "Done", code: "Code", calls: "Calls {name}", lines: "Write two texts or more, one a line.", no_mask: "Write [MASK] where a word is missing.",
    note: "Tap a token to see what else could have stood there.",
  },
  zh: {
    model: "模型", new: "新对话", settings: "设置", theme: "浅色或深色", close: "关闭", send: "发送", stop: "停止", write: "在此输入",
    system: "系统提示词", temperature: "温度", repetition: "重复惩罚", longest: "最长回答", seed: "随机种子", stop_at: "停止词",
    show_tokens: "显示词元及其概率", reset: "恢复默认", key: "API 密钥", key_hint: "仅保存在此标签页中。", api: "API 文档",
    k_send: "发送", k_line: "换行", k_stop: "停止", k_write: "输入", all: "全部", random: "随机",
    copy: "复制", copied: "已复制", retry: "重新生成", edit: "编辑", tokens: "词元及其概率", stopped: "已停止。",
    hello_chat: "想聊点什么？", about_chat: "{model} 在本机作答，内容可能有误。",
    hello_write: "写个开头", about_write: "{model} 会接着往下写。",
    hello_reply: "给它一段文字", about_reply: "{model} 读后作答。",
    hello_fill: "缺的是什么？", about_fill: "在要填词的地方写 [MASK]，由 {model} 填空。",
    hello_classify: "这段话是哪一类？", about_classify: "{model} 会给文本分类：{labels}。",
    hello_embed: "它们有多相似？", about_embed: "{model} 按语义比较文本，每行一条。",
    hello_tag: "文中提到了谁和什么？", about_tag: "{model} 会找出文本中的命名实体。",
    hello_answer: "想知道什么？", about_answer: "{model} 在段落中找答案。第一行写问题，下面写段落。",
    hello_see: "图里是什么？", about_see: "{model} 会给图片分类：{labels}。", write_see: "", ideas_see: [],
    hello_choose: "哪句话符合图片？", about_choose: "每行写一种可能的内容，再选一张图片：{model} 会判断哪一句最符合。",
    write_choose: "图中可能的内容，每行一条", ideas_choose: [], picture: "选择图片", no_picture: "浏览器无法读取这个文件为图片。",
    hello_none: "没有可用的模型", about_none: "服务器上没有本页可用的模型。",
    write_chat: "输入消息", write_write: "文本的开头", write_reply: "输入文本", write_fill: "含有 [MASK] 的文本",
    write_classify: "要分类的文本", write_embed: "两条以上的文本，每行一条",
    write_tag: "含有人名、地名的文本", write_answer: "第一行写问题，下面写段落",
    ideas_tag: ["曹操在洛阳见到了刘备。"], ideas_answer: ["作者是谁？\n《红楼梦》的作者是曹雪芹。"],
    no_passage: "请在第一行写问题，在下面写段落。",
    ideas_chat: ["用孩子能懂的话解释什么是 Transformer", "写一首关于秋雨的短诗", "17 乘以 24 等于多少？"],
    ideas_write: ["却说曹操", "Once upon a time"], ideas_reply: [], ideas_fill: ["房间很[MASK]，服务也好。", "The capital of France is [MASK]."],
    ideas_classify: ["房间很干净，下次还来！", "服务态度太差了。"], ideas_embed: ["他在弹吉他。\n有人在演奏音乐。\n今天股市大跌。"],
    figures: "{tokens} 个词元 · 每秒 {rate} 个 · 首词元 {first}", figures_short: "{tokens} 个词元", mask: "第 {number} 处",
    cut: "已达最长回答", no_key: "此服务器需要 API 密钥，请在设置中填写。", offline: "服务器没有响应，它还在运行吗？",
    is_working: "正在作答", is_done: "已完成", code: "代码", calls: "调用 {name}", lines: "请写两条以上的文本，每行一条。", no_mask: "请在缺词处写 [MASK]。",
    note: "点按词元，可查看该处的其他候选。",
  },
};

let language = "en";

export const current = () => language;

/** The words for a name, with {parts} put in. */
export function t(name, parts = {}) {
  const found = WORDS[language][name] ?? WORDS.en[name] ?? name;
  return typeof found === "string" ? found.replace(/\{(\w+)\}/g, (whole, key) => parts[key] ?? whole) : found;
}

/** Choose a language, and put its words where the page asks for them. */
export function speak(chosen) {
  language = chosen in WORDS ? chosen : "en";
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of document.querySelectorAll("[data-title]")) {
    element.title = t(element.dataset.title);
    element.setAttribute("aria-label", element.title);
  }
  for (const element of document.querySelectorAll("[data-label]")) element.setAttribute("aria-label", t(element.dataset.label));
  for (const element of document.querySelectorAll("[data-place]")) element.placeholder = t(element.dataset.place);
  document.getElementById("language").textContent = language === "zh" ? "English" : "中文";
}

/** The language remembered, or the browser's. */
export function preferred() {
  return localStorage.getItem("triform.language") ?? (navigator.language.startsWith("zh") ? "zh" : "en");
}
