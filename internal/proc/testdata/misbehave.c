// misbehave is every way not to die that the conformance suite knows.
//
//	misbehave                    lists its behaviours
//	misbehave NAME FILE          behaves so, with a heartbeat written into FILE
//	misbehave NAME FILE leave    has a child behave so, and exits when its stdin ends
//
// Each process that is in place says so by a dot on stdout. Exit code 77 means
// that the behaviour is not to be had here. All ends by itself after a minute,
// should everything else fail.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/sched.h>
#include <pthread.h>
#include <pty.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

enum { ready = 10 };   // where the dots go: stdout
static int out = 11;   // FILE; both stay open over an exec
static char **words;   // argv
static char *words_end; // of it and the environment behind it
static char *path;     // FILE
static pid_t shim;     // above the main process
static time_t until;   // then it is over
static int again;      // this is not the first exec

static time_t now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec;
}

static void nap(int us) {
	struct timespec t = {0, us * 1000L};
	nanosleep(&t, NULL);
}

static void check(int ok, const char *what) {
	if (!ok) {
		dprintf(2, "misbehave: cannot %s: %s\n", what, strerror(errno));
		_exit(1);
	}
}

static void refuse(const char *what) {
	dprintf(2, "misbehave: %s is not allowed here: %s\n", what, strerror(errno));
	_exit(77);
}

static void here(void) { check(write(ready, ".", 1) == 1, "say that it is there"); }

static int live(void) {
	if (now() < until)
		return 1;
	_exit(3);
}

static void beat(void) {
	while (live()) {
		(void)!write(out, "x", 1);
		nap(5000);
	}
}

static void rest(void) { here(); beat(); }

static void quiet(void) {
	here();
	while (live())
		nap(900000);
}

static void linger(void) { // in silence: it may never come to say a dot
	while (live())
		nap(900000);
}

static void leave(void) { _exit(0); }

static pid_t spawn(void (*f)(void)) {
	pid_t pid = fork();
	check(pid >= 0, "fork");
	if (pid == 0) {
		f();
		_exit(0);
	}
	return pid;
}

// ---- families

static void plain(void) { spawn(rest); rest(); }

static void in_session(void) { setsid(); rest(); }
static void session(void) { spawn(in_session); rest(); }

static void orphan_rest(void) { spawn(rest); }
static void orphan_session(void) { setsid(); spawn(in_session); }
static void double_fork(void) {
	waitpid(spawn(orphan_rest), NULL, 0);
	waitpid(spawn(orphan_session), NULL, 0);
	rest();
}

static void keep_terminal(int s) { (void)s; }
static void terminal(void) {
	int master;
	signal(SIGHUP, keep_terminal);
	pid_t pid = forkpty(&master, NULL, NULL, NULL);
	check(pid >= 0, "open a terminal");
	if (pid == 0) {
		printf("\n");
		fflush(stdout);
		rest();
	}
	char b;
	check(read(master, &b, 1) == 1, "hear from the terminal");
	close(master); // SIGHUP
	rest();
}

static void quiet_orphan(void) { setsid(); spawn(quiet); }
static void thousand(void) {
	for (int i = 0; i < 500; i++) {
		spawn(quiet);
		waitpid(spawn(quiet_orphan), NULL, 0);
	}
	rest();
}

static int depth;
static void deeper(void) {
	if (--depth > 0)
		spawn(deeper);
	if (depth % 2)
		setsid();
	quiet();
}
static void deep(void) { depth = 300; spawn(deeper); rest(); }

static void zombies(void) {
	for (int i = 0; i < 50; i++)
		spawn(leave);
	rest();
}

// ---- forking while it is killed

static void brief(void) { nap(20000); }
static void brief_session(void) { setsid(); nap(20000); }
static void *forker(void *first) {
	for (int n = 0; live(); n++) {
		pid_t pid = fork();
		if (pid == 0) {
			n % 2 ? brief() : brief_session();
			_exit(0);
		}
		if (n == 5)
			here();
		if (n >= 20)
			waitpid(-1, NULL, 0);
	}
	return first;
}
static void threads_fork(void) {
	pthread_t t;
	for (int i = 0; i < 8; i++)
		check(pthread_create(&t, NULL, forker, NULL) == 0, "start a thread");
	beat();
}

static int new_sessions;
static void pass_on(void) { // the child is all that is left of its parent
	here();
	while (live()) {
		pid_t pid = fork();
		if (pid > 0)
			_exit(0);
		if (pid == 0 && new_sessions)
			setsid();
		if (pid == 0)
			(void)!write(out, "x", 1);
	}
}
static void potato(void) {
	for (int i = 0; i < 4; i++)
		spawn(pass_on);
	rest();
}
static void potato_sessions(void) { new_sessions = 1; potato(); }

static void phoenix(void) { // parent and child, each starts the other anew
	here();
	while (live()) {
		pid_t up = getpid(), pid = fork();
		if (pid == 0) {
			if (up != getppid())
				continue;
			here();
			while (live() && getppid() == up)
				nap(500);
			setsid();
			continue;
		}
		while (pid > 0 && waitpid(pid, NULL, WNOHANG) == 0 && live()) {
			(void)!write(out, "x", 1);
			nap(500);
		}
	}
}

// Only a user who is nobody else's does the following two, and with a limit.
static void throw_away(void) {
	struct rlimit r = {300, 300};
	check(setrlimit(RLIMIT_NPROC, &r) == 0, "limit processes");
	if (geteuid() == 0) {
		uid_t uid = 300000 + (unsigned)getpid() % 100000;
		check(setgroups(0, NULL) == 0 && setresgid(uid, uid, uid) == 0 && setresuid(uid, uid, uid) == 0, "become nobody");
	}
	check(getuid() != 0 && geteuid() != 0 && kill(1, 0) != 0 && errno == EPERM, "be without power");
}
static void bomb(void) {
	pid_t first = getpid();
	throw_away();
	for (int full = 0; live();) {
		pid_t pid = fork();
		if (pid == 0 && getpid() % 2)
			setsid();
		if (pid < 0 && getpid() == first && !full++)
			here();
		if (pid < 0)
			nap(50000);
	}
}
static void massacre(void) {
	uid_t before = geteuid();
	throw_away();
	check(before == 0, "be without neighbours");
	spawn(linger);
	spawn(linger);
	kill(-1, SIGKILL);
	here();
	while (live()) {
		kill(-1, SIGKILL);
		(void)!write(out, "x", 1);
		nap(1000);
	}
}

// ---- signals

static void deaf(void) {
	sigset_t all;
	for (int s = 1; s <= 64; s++)
		signal(s, SIG_IGN);
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	plain();
}

static void halt(void) { here(); kill(getpid(), SIGSTOP); beat(); }
static void stopped(void) { spawn(halt); halt(); }

static pid_t rival;
static void wake(void) {
	setsid();
	here();
	while (live()) {
		kill(rival, SIGCONT);
		kill(getppid(), SIGCONT);
		nap(100);
	}
}
static void sigcont(void) { // a fight with whoever stops them
	rival = spawn(halt);
	rival = spawn(wake);
	spawn(wake);
	rest();
}

static void no_sigchld(void) {
	sigset_t set;
	signal(SIGCHLD, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, NULL);
	zombies();
}

static void pester(void) { // every signal that is none of the kernel's last words
	for (int i = 0; i < 20; i++)
		for (int s = 1; s <= 64; s++)
			if (s != SIGKILL && s != SIGSTOP && (s < 32 || s > 34))
				kill(shim, s);
	plain();
}

static void strike(int s) { // once somebody has written into FILE
	while (live() && lseek(out, 0, SEEK_END) == 0)
		nap(1000);
	kill(shim, s);
	rest();
}
static void kill_shim(void) { strike(SIGKILL); }
static void stop_shim(void) { strike(SIGSTOP); }

static void regroup(void) {
	setpgid(0, getpgid(shim));
	pid_t leader = spawn(linger);
	setpgid(leader, leader);
	setpgid(spawn(rest), leader);
	kill(leader, SIGKILL); // the group stays, without its leader
	rest();
}

// ---- threads, clones and execs

static void vforked(void) {
	if (vfork() == 0)
		rest();
}

static void *outlive(void *leader) { spawn(in_session); rest(); return leader; }
static void leader(void) {
	pthread_t t;
	check(pthread_create(&t, NULL, outlive, NULL) == 0, "start a thread");
	syscall(SYS_exit, 0); // of this thread alone
}

static void clone_with(unsigned long flags) {
	long pid = syscall(SYS_clone, flags, 0, 0, 0, 0);
	check(pid >= 0, "clone");
	if (pid == 0) {
		spawn(in_session);
		rest();
	}
	rest();
}
static void clone_parent(void) { clone_with(CLONE_PARENT | SIGCHLD); }
static void clone_silent(void) { clone_with(0); } // its end is no signal

static void run_again(char **argv, char **env) {
	execve("/proc/self/exe", argv, env);
	check(0, "run again");
}
static void *exec_thread(void *v) {
	setenv("MISBEHAVE_AGAIN", "1", 1);
	run_again(words, environ);
	return v;
}
static void exec_loop(void) {
	pthread_t t;
	if (!again)
		here();
	words = (char *[]){words[0], "exec-loop", path, NULL};
	(void)!write(out, "x", 1);
	check(pthread_create(&t, NULL, exec_thread, NULL) == 0, "start a thread");
	linger();
}

static void huge(void) { // nearly what the kernel takes
	enum { each = 100000, count = 8 };
	static char *argv[count + 4], *env[count + 4];
	if (again)
		plain();
	argv[0] = words[0], argv[1] = "huge", argv[2] = path;
	for (int i = 0; i < count; i++) {
		char *s = malloc(each);
		memset(s, 'x', each);
		s[1] = '=';
		s[each - 1] = 0;
		env[i] = argv[3 + i] = s;
	}
	env[count] = "MISBEHAVE_AGAIN=1";
	run_again(argv, env);
}

// ---- what can be seen and held of it

static void rename_all(void) {
	prctl(PR_SET_NAME, ") Z 1 1 (\n");
	memset(words[0], '\n', words_end - words[0]);
	plain();
}

static void hidden(void) { prctl(PR_SET_DUMPABLE, 0); plain(); }

static void close_all(void) {
	close_range(0, ~0U, 0);
	out = open(path, O_WRONLY | O_APPEND);
	beat();
}
static void here_close_all(void) { here(); close_all(); }
static void closes(void) { spawn(here_close_all); here(); close_all(); }

static void writer(void) {
	here();
	for (unsigned long n = 0; live(); n++)
		(void)!pwrite(out, &n, sizeof n, 0);
}
static void writes(void) {
	fcntl(out, F_SETFL, 0); // not at the end
	spawn(writer);
	writer();
}

static void priority(void) { // as far as it is let
	struct sched_param p = {1};
	mlockall(MCL_CURRENT | MCL_FUTURE);
	setpriority(PRIO_PROCESS, 0, -20);
	if (sched_setscheduler(0, SCHED_FIFO, &p) != 0) {
		p.sched_priority = 0;
		setpriority(PRIO_PROCESS, 0, 19);
		sched_setscheduler(0, SCHED_IDLE, &p);
	}
	plain();
}

static void fat(void) {
	size_t size = 64 << 20;
	char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	check(p != MAP_FAILED, "take memory");
	plain();
}

// ---- tracing

static void traceable(void) { prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY); beat(); }

// seize has a process stop in the middle, and stop again on its way out: only its
// tracer can let it go on.
static void seize(pid_t pid) {
	if (ptrace(PTRACE_SEIZE, pid, 0, PTRACE_O_TRACEEXIT | PTRACE_O_TRACEFORK) != 0)
		refuse("tracing");
	ptrace(PTRACE_INTERRUPT, pid, 0, 0);
}
static void trace_me(void) { ptrace(PTRACE_TRACEME, 0, 0, 0); halt(); }
static void traces(void) {
	spawn(trace_me);
	seize(spawn(traceable));
	here();
	beat();
}

static int link_to[2];
static void report_orphan(void) {
	pid_t pid = spawn(traceable);
	check(write(link_to[1], &pid, sizeof pid) == sizeof pid, "tell");
}
static void traces_orphan(void) {
	pid_t pid;
	check(pipe(link_to) == 0, "make a pipe");
	waitpid(spawn(report_orphan), NULL, 0);
	check(read(link_to[0], &pid, sizeof pid) == sizeof pid, "hear");
	nap(2000); // it allows it first
	seize(pid);
	here();
	beat();
}

static void traces_shim(void) {
	check(ptrace(PTRACE_SEIZE, shim, 0, 0) != 0, "fail to trace the shim");
	plain();
}

// ---- users and namespaces

static void other_user(void) {
	check(setgroups(0, NULL) == 0 && setresgid(65123, 65123, 65123) == 0 && setresuid(65123, 65123, 65123) == 0, "become another user");
	plain();
}

static void set_user_id(void) {
	char *program = getenv("MISBEHAVE_SETUID");
	if (again) {
		check(geteuid() != getuid(), "have got another user");
		plain();
	}
	check(program != NULL, "find a set-user-ID program");
	setenv("MISBEHAVE_AGAIN", "1", 1);
	execl(program, "misbehave", "set-user-id", path, NULL);
	check(0, "run it");
}

static void user_namespace(void) {
	if (unshare(CLONE_NEWUSER) != 0)
		refuse("a user namespace");
	plain();
}

static void pid_one(void) {
	for (int s = 1; s <= 64; s++)
		signal(s, SIG_IGN);
	waitpid(spawn(orphan_session), NULL, 0);
	rest();
}
static void pid_namespace(void) {
	if (unshare(CLONE_NEWPID) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWPID) != 0)
		refuse("a PID namespace");
	spawn(pid_one);
	rest();
}

static void subreaper(void) {
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	double_fork(); // they rise no further than here
}

// ---- cgroups

static char group[3 * PATH_MAX]; // the own one, of version 2

static void find_group(void) {
	char mount[PATH_MAX] = "", line[2 * PATH_MAX], at[PATH_MAX];
	FILE *f = fopen("/proc/self/mountinfo", "r");
	while (f && fgets(line, sizeof line, f))
		if (strstr(line, " - cgroup2 ") && sscanf(line, "%*d %*d %*s %*s %4095s", at) == 1)
			strcpy(mount, at);
	if (f)
		fclose(f);
	f = fopen("/proc/self/cgroup", "r");
	while (f && fgets(line, sizeof line, f))
		if (strncmp(line, "0::", 3) == 0)
			snprintf(group, sizeof group, "%s%.*s", mount, (int)strcspn(line + 3, "\n"), line + 3);
	if (f)
		fclose(f);
	errno = ENOENT;
	if (!*mount || !*group)
		refuse("a cgroup of version 2");
}

static int set(const char *dir, const char *file, const char *value) {
	char name[5 * PATH_MAX];
	snprintf(name, sizeof name, "%s/%s", dir, file);
	int fd = open(name, O_WRONLY);
	int ok = fd >= 0 && write(fd, value, strlen(value)) > 0;
	if (fd >= 0)
		close(fd);
	return ok;
}

static int up;
static void climb(void) {
	char dir[4 * PATH_MAX];
	strcpy(dir, group);
	for (int i = 0; i < up; i++) {
		strcat(dir, "/..");
		set(dir, "cgroup.procs", "0");
	}
	rest();
}
static void group_leave(void) {
	find_group();
	for (up = 1; up <= 3; up++)
		spawn(climb);
	rest();
}

static int frozen;
static void nest(void) {
	char dir[4 * PATH_MAX];
	strcpy(dir, group);
	for (int i = 0; i < 3; i++) {
		strcat(dir, "/misbehave");
		mkdir(dir, 0755);
		if (spawn(linger) > 0)
			set(dir, "cgroup.procs", "0");
	}
	here();
	if (frozen)
		set(dir, "cgroup.freeze", "1"); // and itself in it
	beat();
}
static void group_nest(void) { find_group(); spawn(nest); rest(); }
static void group_freeze(void) { frozen = 1; group_nest(); }

static const struct {
	const char *name;
	void (*behave)(void);
} behaviours[] = {
	{"plain", plain}, {"session", session}, {"double-fork", double_fork}, {"terminal", terminal},
	{"thousand", thousand}, {"deep", deep}, {"zombies", zombies},
	{"threads-fork", threads_fork}, {"potato", potato}, {"potato-sessions", potato_sessions}, {"phoenix", phoenix},
	{"bomb", bomb}, {"massacre", massacre},
	{"deaf", deaf}, {"stopped", stopped}, {"sigcont", sigcont}, {"no-sigchld", no_sigchld}, {"pester", pester},
	{"kill-shim", kill_shim}, {"stop-shim", stop_shim}, {"regroup", regroup},
	{"vfork", vforked}, {"leader", leader}, {"clone-parent", clone_parent}, {"clone-silent", clone_silent},
	{"exec-loop", exec_loop}, {"huge", huge},
	{"rename", rename_all}, {"hidden", hidden}, {"closes", closes}, {"writes", writes}, {"priority", priority}, {"fat", fat},
	{"traces", traces}, {"traces-orphan", traces_orphan}, {"traces-shim", traces_shim},
	{"other-user", other_user}, {"set-user-id", set_user_id}, {"user-namespace", user_namespace},
	{"pid-namespace", pid_namespace}, {"subreaper", subreaper},
	{"group-leave", group_leave}, {"group-nest", group_nest}, {"group-freeze", group_freeze},
};

int main(int argc, char **argv) {
	enum { count = sizeof behaviours / sizeof *behaviours };
	if (argc < 3) {
		for (int i = 0; i < count; i++)
			puts(behaviours[i].name);
		return argc > 1;
	}
	words = argv, path = argv[2];
	for (char **e = environ; *e; e++)
		words_end = *e + strlen(*e);
	shim = getppid();
	again = getenv("MISBEHAVE_AGAIN") != NULL;
	if (!again)
		check(dup2(1, ready) >= 0 && dup2(open(path, O_WRONLY | O_APPEND), out) >= 0, "open its file");
	char *given = getenv("MISBEHAVE_UNTIL"), ours[32];
	until = given ? atol(given) : now() + 60;
	snprintf(ours, sizeof ours, "%ld", (long)until);
	setenv("MISBEHAVE_UNTIL", ours, 1);
	for (int i = 0; i < count; i++) {
		if (strcmp(behaviours[i].name, argv[1]) != 0)
			continue;
		if (argc == 4) {
			char b;
			spawn(behaviours[i].behave);
			while (read(0, &b, 1) != 0)
				;
			return 7;
		}
		behaviours[i].behave();
		return 0;
	}
	errno = EINVAL;
	check(0, argv[1]);
}
