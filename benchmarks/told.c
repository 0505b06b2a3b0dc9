/* What is started when nothing but the starting is measured: `told FIFO NAME`.

   It says when it runs ("NAME PID NANOSECONDS", of the monotonic clock, in one write), and then
   sleeps. Nobody there to read, or an end of that: it sleeps all the same. */

#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

int main(int count, char **words)
{
    struct timespec now;
    char line[256];

    clock_gettime(CLOCK_MONOTONIC, &now);
    if (count == 3) {
        int fifo = open(words[1], O_WRONLY | O_NONBLOCK | O_CLOEXEC);
        int length = snprintf(line, sizeof line, "%s %d %lld\n", words[2], (int)getpid(),
                              now.tv_sec * 1000000000LL + now.tv_nsec);
        if (fifo >= 0 && write(fifo, line, length) != length)
            return 1;
        close(fifo);
    }
    for (;;)
        pause();
}
