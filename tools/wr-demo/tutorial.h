/* The three programs that introduce weak references in Python, in C. */
#ifndef WR_DEMO_TUTORIAL_H
#define WR_DEMO_TUTORIAL_H

void tutorial_run(void);

#endif
