// Requests at given instants, whether or not answers keep up: one thread, loopback, no work but sending and counting.
//
//   arrivals PORT CONNECTIONS TIMEOUT_S REQUESTS DUE EVERY ANSWERS < nothing > records
//
// REQUESTS: whole HTTP requests, each behind its length (uint64). They go out in rotation. DUE: seconds from the start,
// rising (float64); a due request goes to a free connection, or waits for one. stdout: a record for each due instant.
// Of every EVERYth request the answer's body is appended to ANSWERS, behind its length (uint64).
//
// Latency counts from the due instant, so a server that falls behind is charged for all who wait.
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

namespace {

struct Record {
    double latency_s = -1;  // -1: never answered
    double late_s = 0;      // from the due instant to the first byte sent
    int32_t status = 0;     // 0: the connection broke or time ran out
    int32_t body_bytes = 0;
};
static_assert(sizeof(Record) == 24, "as NumPy reads it");

struct Connection {
    int fd = -1;
    long call = -1;  // -1: idle
    size_t sent = 0;
    std::string got;
    size_t head_end = 0;  // 0 until the headers are whole
    size_t total = 0;
    int status = 0;
};

double now_s() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

[[noreturn]] void fail(const char *what) {
    perror(what);
    exit(1);
}

std::vector<std::string> read_requests(const char *path) {
    std::ifstream file(path, std::ios::binary);
    std::vector<std::string> found;
    uint64_t size;
    while (file.read(reinterpret_cast<char *>(&size), sizeof size)) {
        std::string one(size, '\0');
        if (!file.read(one.data(), size)) fail("a request that is cut");
        found.push_back(std::move(one));
    }
    return found;
}

std::vector<double> read_due(const char *path) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    std::vector<double> found(file.tellg() / sizeof(double));
    file.seekg(0);
    file.read(reinterpret_cast<char *>(found.data()), found.size() * sizeof(double));
    return found;
}

class Load {
  public:
    Load(int port, int connections, std::vector<std::string> requests, std::vector<double> due, long every,
         const char *answers)
        : port_(port), connections_(connections), requests_(std::move(requests)), due_(std::move(due)),
          records_(due_.size()), every_(every), answers_(answers, std::ios::binary) {
        poll_ = epoll_create1(0);
        timer_ = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
        epoll_event event{EPOLLIN, {.u32 = kTimer}};
        epoll_ctl(poll_, EPOLL_CTL_ADD, timer_, &event);
        for (size_t i = 0; i < connections_.size(); ++i) {
            open(i);
            free_.push_back(i);
        }
    }

    std::vector<Record> run(double timeout_s) {
        start_s_ = now_s() + 0.01;
        const double end_s = start_s_ + (due_.empty() ? 0 : due_.back()) + timeout_s;
        arm();
        while (done_ < due_.size() && now_s() < end_s) {
            epoll_event events[256];
            const int count = epoll_wait(poll_, events, 256, 100);
            for (int i = 0; i < count; ++i) {
                if (events[i].data.u32 == kTimer) {
                    uint64_t expired;
                    while (read(timer_, &expired, sizeof expired) > 0) {}
                } else {
                    serve(events[i].data.u32, events[i].events);
                }
            }
            send_due();
        }
        return records_;
    }

  private:
    static constexpr uint32_t kTimer = UINT32_MAX;

    void open(size_t index) {
        Connection &c = connections_[index];
        c = Connection{};
        c.fd = socket(AF_INET, SOCK_STREAM, 0);
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_port = htons(port_);
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        if (connect(c.fd, reinterpret_cast<sockaddr *>(&address), sizeof address) != 0) fail("connect");
        const int on = 1;
        setsockopt(c.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        fcntl(c.fd, F_SETFL, O_NONBLOCK);
        epoll_event event{EPOLLIN, {.u32 = static_cast<uint32_t>(index)}};
        epoll_ctl(poll_, EPOLL_CTL_ADD, c.fd, &event);
    }

    // Wakes at the next due instant, unless nothing could be sent then: an answer will wake it.
    void arm() {
        itimerspec when{};
        if (next_ < due_.size() && !free_.empty()) {
            const double at_s = start_s_ + due_[next_];
            when.it_value.tv_sec = static_cast<time_t>(at_s);
            when.it_value.tv_nsec = static_cast<long>((at_s - when.it_value.tv_sec) * 1e9) + 1;
        }
        timerfd_settime(timer_, TFD_TIMER_ABSTIME, &when, nullptr);
    }

    void send_due() {
        while (next_ < due_.size() && !free_.empty() && start_s_ + due_[next_] <= now_s()) {
            const size_t index = free_.back();
            free_.pop_back();
            connections_[index].call = static_cast<long>(next_);
            records_[next_].late_s = now_s() - start_s_ - due_[next_];
            ++next_;
            push(index);
        }
        arm();
    }

    void push(size_t index) {
        Connection &c = connections_[index];
        const std::string &request = requests_[c.call % requests_.size()];
        while (c.sent < request.size()) {
            const ssize_t n = send(c.fd, request.data() + c.sent, request.size() - c.sent, MSG_NOSIGNAL);
            if (n < 0) {
                if (errno == EAGAIN) return watch(index, EPOLLIN | EPOLLOUT);
                return settle(index, false);
            }
            c.sent += n;
        }
    }

    void watch(size_t index, uint32_t events) {
        epoll_event event{events, {.u32 = static_cast<uint32_t>(index)}};
        epoll_ctl(poll_, EPOLL_CTL_MOD, connections_[index].fd, &event);
    }

    void serve(size_t index, uint32_t events) {
        if (events & EPOLLOUT) {
            watch(index, EPOLLIN);
            push(index);
        }
        if (!(events & (EPOLLIN | EPOLLERR | EPOLLHUP))) return;
        Connection &c = connections_[index];
        char buffer[65536];
        for (;;) {
            const ssize_t n = recv(c.fd, buffer, sizeof buffer, 0);
            if (n > 0) {
                c.got.append(buffer, n);
                if (static_cast<size_t>(n) == sizeof buffer) continue;
                break;
            }
            if (n < 0 && errno == EAGAIN) break;
            if (c.call >= 0) return settle(index, false);
            close(c.fd);  // an idle connection that the server has closed
            return open(index);
        }
        if (whole(c)) settle(index, true);
    }

    // Answers have a Content-Length; one without is never whole, and so a failure.
    static bool whole(Connection &c) {
        if (c.head_end == 0) {
            const size_t at = c.got.find("\r\n\r\n");
            if (at == std::string::npos) return false;
            c.head_end = at + 4;
            c.status = c.got.size() > 12 ? atoi(c.got.c_str() + 9) : 0;
            c.total = SIZE_MAX;
            for (size_t line = c.got.find("\r\n") + 2; line < at; line = c.got.find("\r\n", line) + 2)
                if (strncasecmp(c.got.c_str() + line, "content-length:", 15) == 0)
                    c.total = c.head_end + strtoul(c.got.c_str() + line + 15, nullptr, 10);
        }
        return c.got.size() >= c.total;
    }

    void settle(size_t index, bool answered) {
        Connection &c = connections_[index];
        Record &record = records_[c.call];
        if (answered) {
            record.latency_s = now_s() - start_s_ - due_[c.call];
            record.status = c.status;
            record.body_bytes = static_cast<int32_t>(c.got.size() - c.head_end);
            if (c.call % every_ == 0) {
                const uint64_t size = c.got.size() - c.head_end;
                answers_.write(reinterpret_cast<const char *>(&size), sizeof size);
                answers_.write(c.got.data() + c.head_end, size);
            }
            c.call = -1;
            c.sent = c.head_end = 0;
            c.got.clear();
        } else {
            close(c.fd);
            open(index);
        }
        ++done_;
        free_.push_back(index);
    }

    int port_, poll_, timer_;
    std::vector<Connection> connections_;
    std::vector<std::string> requests_;
    std::vector<double> due_;
    std::vector<Record> records_;
    long every_;
    std::ofstream answers_;
    std::vector<size_t> free_;
    size_t next_ = 0, done_ = 0;
    double start_s_ = 0;
};

}  // namespace

int main(int argc, char **argv) {
    if (argc != 8) return 2;
    prctl(PR_SET_TIMERSLACK, 1UL);
    const auto requests = read_requests(argv[4]);
    const auto due = read_due(argv[5]);
    if (requests.empty()) return 2;
    Load load(atoi(argv[1]), atoi(argv[2]), requests, due, atol(argv[6]), argv[7]);
    const auto records = load.run(atof(argv[3]));
    fwrite(records.data(), sizeof(Record), records.size(), stdout);
    return 0;
}
