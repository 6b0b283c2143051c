"""Thirty questions written without looking at what is found for them, half of them in Chinese.

They are worded as people ask. Neither the local model nor the corpus was changed for them. Add
questions; do not reword these.
"""

from __future__ import annotations

from nexusflow_integrations.cli.rag.questions import Question

UNSEEN: tuple[Question, ...] = (
    Question("make the first letter of every word upper case", r"string\.capwords"),
    Question("how many days does february have this year", r"calendar\.(monthrange|isleap)"),
    Question(
        "turn the ~ in a path into my home folder",
        r"(os\.path|pathlib\.\w*Path)\.(expanduser|home)",
    ),
    Question(
        "find all files ending in .log below a directory",
        r"glob\.i?glob|pathlib\.\w*Path\.r?glob|os\.f?walk|fnmatch\.filter",
    ),
    Question(
        "what's the most common value in my data",
        r"statistics\.(multi)?mode|collections\.Counter(\.most_common)?",
    ),
    Question("get rid of html codes like &amp; in a string", r"html\.unescape"),
    Question("md5 of a big file", r"hashlib\.(md5|file_digest|new)"),
    Question(
        "always take the smallest item out first",
        r"heapq\.(heappop|heapify|heappushpop|heapreplace|nsmallest)|queue\.PriorityQueue",
    ),
    Question("call a function ten seconds from now", r"threading\.Timer|sched\.scheduler.*"),
    Question("how can I read command line flags in my script", r"argparse\.ArgumentParser.*"),
    Question("temp folder that cleans itself up", r"tempfile\.TemporaryDirectory"),
    Question(
        "convert bytes to a base64 string",
        r"base64\.(standard_|urlsafe_)?b64encode|base64\.encode(bytes)?",
    ),
    Question("check whether two files have the same contents", r"filecmp\.cmp(files)?"),
    Question("run my cleanup code when somebody presses ctrl+c", r"signal\.(signal|getsignal)"),
    Question(
        "get the parameters after the question mark of a url",
        r"urllib\.parse\.(parse_qsl?|urlparse|urlsplit)",
    ),
    Question("怎么去掉每行开头的缩进", r"textwrap\.dedent", "zh"),
    Question(
        "列表里出现次数最多的元素怎么找",
        r"statistics\.(multi)?mode|collections\.Counter(\.most_common)?",
        "zh",
    ),
    Question("怎么生成不会重复的唯一编号", r"uuid\.(uuid\d|UUID)", "zh"),
    Question("把字符串里的所有数字替换成星号", r"re\.subn?", "zh"),
    Question("解压 tar.gz 文件", r"tarfile\.\w+|shutil\.unpack_archive", "zh"),
    Question("怎么知道某个命令装在哪个目录", r"shutil\.which", "zh"),
    Question("怎么计算文件的 sha256", r"hashlib\.(sha256|file_digest|new)", "zh"),
    Question("把两个排好序的列表合并成一个", r"heapq\.merge", "zh"),
    Question("开平方怎么算", r"(math|cmath)\.i?sqrt", "zh"),
    Question("打印一个月的日历", r"calendar\.(\w*Calendar|month|prmonth)(\.\w+)?", "zh"),
    Question("如何把文件移动到别的文件夹", r"shutil\.move|os\.(rename|renames|replace)", "zh"),
    Question("怎么列出文件夹里的所有文件", r"os\.(listdir|scandir|f?walk)|glob\.i?glob", "zh"),
    Question("多个线程同时改一个变量怎么加锁", r"threading\.(R?Lock|allocate_lock)", "zh"),
    Question(
        "把字符串转换成日期",
        r"(datetime\.)?datetime\.(strptime|fromisoformat)|time\.strptime",
        "zh",
    ),
    Question("用 Python 发一封邮件", r"smtplib\.SMTP(_SSL)?(\.\w+)?", "zh"),
)
